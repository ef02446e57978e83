"""Helpers of the tests that call the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
from PIL import Image

TWO_BLOCKS = ("--model-kwargs", "depth=2")
SMALL = ("--random-weights", "--img-size", "32", "--num-classes", "2", *TWO_BLOCKS)
"""An untrained `test_vit` of two blocks for two classes, quick to run."""
VIT = ("--model", "test_vit", *TWO_BLOCKS)
"""What a bare weights file of it is of."""

PAIR = ("--method", "pair")
"""What tests take whose matter is not the choice of sizes: a budget costs several seconds, which go into counting."""


@dataclass(frozen=True)
class Result:
    """Exit code and both streams of one command."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one error message; nothing else may have gone to stdout, and no traceback anywhere."""
        assert self.out == ""
        assert "Traceback" not in self.err
        messages = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(messages) == 1, self.err
        return messages[0]


Run = Callable[..., Result]


def write_images(folder: Path, count: int, size: int = 40) -> None:
    """Noise in class folders `cat` and `dog`; every image is different, and the same wherever the folder lies."""
    rng = np.random.default_rng(crc32(folder.name.encode()))
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
