"""The commands that are interrupted, each in a folder of its own with a small model and a few images.

What takes long is computed once and remembered, so that a command that is ended hundreds of times comes to its writing
at once; everything that writes is the real code.
"""

from __future__ import annotations

import copy
import importlib
import pickle
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.models._hub import save_for_hf
from torch import nn

import vitcompact
from vitcompact.calibration import store
from vitcompact.cli.app import main
from vitcompact.errors import UsageError
from vitcompact.exporting.onnx_file import Onnx
from vitcompact.surgery import calibrated

NEW = "source"
SIZES = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 32, "num_heads": 4}
JOB = (f"analyze {NEW} --data-dir images --method pair", "convert --ratio 0.5")
LESS = "--ratio 0.5 --rank-ratio 0.3"


@dataclass(frozen=True)
class Case:
    """One command that writes.

    Attributes:
        words: the command; `python` calls `save` from Python.
        before: commands that prepare its folder.
        again: what is run after an end of it, where that is not the command itself with --overwrite.
        spills: activations go to the folder for temporary files.
    """

    words: str
    before: tuple[str, ...] = ()
    again: str | None = None
    spills: bool = False

    @property
    def next(self) -> str:
        """The command that comes after an end."""
        return self.again or self.words.replace(" --overwrite", "") + " --overwrite"


CASES: dict[str, Case] = {
    "convert": Case(f"convert {NEW} out --method pair --data-dir images"),
    "convert, spilling": Case(f"convert {NEW} out --method pair --data-dir images", spills=True),
    "convert over": Case(
        f"convert {NEW} out {LESS} --data-dir images --overwrite",
        (f"convert {NEW} out --method pair --data-dir images",),
    ),
    "convert, workspace": Case("convert --ratio 0.5", JOB[:1]),
    "convert over, workspace": Case(f"convert {LESS} --overwrite", JOB),
    "convert --dry-run": Case(f"convert {LESS} --dry-run", JOB, again=f"convert {LESS} --dry-run"),
    "finetune": Case(
        "finetune --steps 3 -b 4",
        JOB,
        again="finetune --steps 3 -b 4 --resume auto --overwrite",
    ),
    "finetune again": Case(
        "finetune --steps 2 -b 4 --overwrite",
        (*JOB, "finetune --steps 3 -b 4"),
    ),
    "fold": Case("fold", JOB),
    "fold over": Case("fold --overwrite", (*JOB, "fold", f"convert {LESS} --overwrite")),
    "analyze": Case(
        f"analyze {NEW} --data-dir images --method pair --report report.html",
        again=f"analyze {NEW} --data-dir images --method pair --report report.html",
    ),
    "analyze again": Case(
        f"analyze {NEW} --data-dir images {LESS} --report report.html",
        (f"analyze {NEW} --data-dir images --method pair --report report.html",),
        again=f"analyze {NEW} --data-dir images {LESS} --report report.html",
    ),
    "compact": Case("compact plain --data-dir images --macs 0.9 --export onnx"),
    "compact over": Case(
        "compact plain --data-dir images --macs 0.8 --export onnx --overwrite",
        ("compact plain --data-dir images --macs 0.9 --export onnx",),
    ),
    "export .onnx": Case(f"export {NEW} model.onnx"),
    "export .onnx over": Case(
        "export out model.onnx --overwrite",
        (f"convert {NEW} made --method pair --data-dir images", "fold made out", f"export {NEW} model.onnx"),
    ),
    "export .onnx over, two files": Case(
        "export out large.onnx --overwrite",
        (f"convert {NEW} made --method pair --data-dir images", "fold made out", f"export {NEW} large.onnx"),
    ),
    "export .pt2 over": Case(
        "export out model.pt2 --overwrite",
        (f"convert {NEW} made --method pair --data-dir images", "fold made out", f"export {NEW} model.pt2"),
    ),
    "export --int8": Case(f"export {NEW} model.onnx --int8 --data-dir images"),
    "compare": Case(
        "compare made out --report page.html --num-pairs 2",
        (f"convert {NEW} made --method pair --data-dir images", "fold made out"),
        again="compare made out --report page.html --num-pairs 2",
    ),
    "bench --backend": Case(
        "bench made --backend onnxruntime --num-pairs 2 -b 1",
        (f"convert {NEW} made0 --method pair --data-dir images", "fold made0 made"),
        again="bench made --backend onnxruntime --num-pairs 2 -b 1",
    ),
    "eval": Case(
        "eval out --data-dir images/val",
        (f"convert {NEW} out --method pair --data-dir images",),
        again="eval out --data-dir images/val",
    ),
    "save in Python": Case("python out", again="python out --overwrite"),
    "save in Python, over": Case("python out --overwrite", ("python first",)),
}


def run(words: str, case: Case) -> int:
    """Run one command of a case in the current folder; returns its exit code."""
    if case.spills:
        calibrated.ActivationStore = lambda limit: store.ActivationStore(0)  # type: ignore[assignment,misc]
    if words.startswith("python"):
        return _saved(words.split())
    return main([*shlex.split(words), "--quiet", "--json"])


def _saved(words: Sequence[str]) -> int:
    """`save`, of another model where the words say `first`."""
    torch.manual_seed(3 + ("first" in words))
    try:
        vitcompact.save(_model(), "out", overwrite="--overwrite" in words)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return 0


def _model() -> nn.Module:
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=2, **SIZES)
    return model


def furnish(box: Path) -> None:
    """Put a model, images and somebody's own files into a folder."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            (box / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(box / "images" / split / name / f"{i}.png")
    torch.manual_seed(0)
    vitcompact.save(_model(), box / "source")
    save_for_hf(_model(), str(box / "plain"), model_args=SIZES)
    (box / "mine").mkdir()
    (box / "mine" / "notes.txt").write_text("of somebody", encoding="utf-8")


REMEMBERED = (
    "vitcompact.cli.verbs.convert.convert",
    "vitcompact.cli.verbs.convert.make_plan",
    "vitcompact.cli.verbs.fold.fold",
    "vitcompact.cli.verbs.analyze.analyze",
    "vitcompact.cli.verbs.compact.compact",
    "vitcompact.cli.verbs.compare.compare",
    "vitcompact.exporting.export._checked",
)
"""What takes long and writes nothing."""


class Memory:
    """Results of long calls by their turn in a command, kept in a folder for other processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key, self.off = "", False
        self._turns: dict[str, int] = {}
        self._found: dict[Path, bytes] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def begin(self, key: str, off: bool = False) -> None:
        """A command begins: its calls are told by `key` and their turn; `off` lets them be made."""
        self.key, self._turns, self.off = "".join(c if c.isalnum() else "_" for c in key), {}, off

    def install(self) -> None:
        """Let the long calls of this process be remembered."""
        for name in REMEMBERED:
            self.remembers(name)
        self.remembers_exports()

    def remembers(self, name: str) -> None:
        """Wrap a function of a module, by its dotted name."""
        module, _, attribute = name.rpartition(".")
        home = importlib.import_module(module)
        plain = getattr(home, attribute)
        setattr(home, attribute, lambda *args, **kwargs: self._of(attribute, lambda: plain(*args, **kwargs)))

    def remembers_exports(self) -> None:
        """Let ONNX files be written as they were the first time, in two files where their name says `large`."""
        write = Onnx.write

        def again(form: Onnx, job: Any, path: Path) -> None:
            def first() -> dict[str, bytes]:
                write(form, job, path)
                return {each.name: each.read_bytes() for each in path.parent.iterdir()}

            files = self._of("onnx", first)
            if path.name.startswith("large"):
                files = {**files, f"{path.name}.data": b"weights of " + files[path.name][-64:]}
            for name, content in files.items():
                (path.parent / name).write_bytes(content)

        Onnx.write = again  # type: ignore[method-assign,assignment]

    def _of(self, name: str, compute: Callable[[], Any]) -> Any:
        if self.off:
            return compute()
        turn = self._turns[name] = self._turns.get(name, 0) + 1
        path = self.folder / f"{self.key}-{name}-{turn}"
        if path not in self._found and path.exists():
            self._found[path] = path.read_bytes()
        if path not in self._found:
            found = compute()
            self._found[path] = pickle.dumps(found)
            path.write_bytes(self._found[path])
            return copy.deepcopy(found)
        return pickle.loads(self._found[path])
