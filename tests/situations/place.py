"""What situations are told with: a folder, the command line in this process, and what may come of a file."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from vitcompact.checkpoint import LoadedModel, SourceOptions, load_source
from vitcompact.cli.app import main
from vitcompact.errors import VitCompactError

VIT: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3}
SWIN: dict[str, Any] = {"embed_dim": 12, "depths": (2, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
PVT: dict[str, Any] = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2)}
TOLERANCE = 1e-5
_LONGEST = 3 * 160  # characters of a message of three lines

Tell = Callable[["Place"], None]


class RoughError(Exception):
    """It works, but not as a new user would have it."""


@dataclass(frozen=True)
class Situation:
    """One thing that a new user comes with."""

    kind: str
    title: str
    tell: Tell


SITUATIONS: list[Situation] = []


def situation(kind: str, title: str) -> Callable[[Tell], Tell]:
    """Add a function to the situations of a kind (A to J)."""

    def add(tell: Tell) -> Tell:
        SITUATIONS.append(Situation(kind, title, tell))
        return tell

    return add


@dataclass(frozen=True)
class Ran:
    """Exit code and both streams of one command."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


@dataclass
class Place:
    """A folder of its own, and what was said meanwhile."""

    folder: Path
    said: list[str] = field(default_factory=list)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def save(self, content: object, name: str = "w.pth") -> Path:
        """What `torch.save` writes."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, self.folder / name)
        return self.folder / name

    def vitcompact(self, *words: object) -> Ran:
        """The command line, in this folder."""
        out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
        os.chdir(self.folder)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main([str(word) for word in words])
        finally:
            os.chdir(before)
        assert "Traceback" not in err.getvalue(), err.getvalue()
        return Ran(code, out.getvalue(), err.getvalue())

    def load(self, source: Path | str, **options: Any) -> LoadedModel:
        """`load_source`, with what it said in `said`."""
        with _heard(self.said):
            return load_source(str(source), SourceOptions(**options))

    def same(self, source: Path | str, theirs: Callable[[Tensor], Any], images: Tensor, **options: Any) -> nn.Module:
        """Load, and compare outputs with those of the library or model that wrote the file."""
        loaded = self.load(source, **options).model
        close(loaded, theirs, images)
        return loaded

    def refused(self, source: Path | str, *told: str, **options: Any) -> str:
        """Loading fails with one short message that tells these words."""
        try:
            self.load(source, **options)
        except VitCompactError as error:
            return short(str(error), *told)
        raise AssertionError(f"{source} was read, where it should be refused with {told}")

    def hears(self, *told: str) -> None:
        """Something with these words was said."""
        for words in told:
            if not any(words in line for line in self.said):
                raise RoughError(f"nothing said {words!r}: {self.said}")


def short(message: str, *told: str) -> str:
    """A refusal: what it says, and that it is not long but for what it lists."""
    for words in told:
        assert words in message, f"{words!r} is not in: {message}"
    text = " ".join(line for line in message.splitlines() if not line.startswith("  "))
    if len(text) > _LONGEST:
        raise RoughError(f"a message of {len(text)} characters: {message}")
    return message


@torch.no_grad()
def close(ours: nn.Module, theirs: Callable[[Tensor], Any], images: Tensor, tolerance: float = TOLERANCE) -> None:
    """Outputs agree, relative to the largest."""
    wanted, found = theirs(images), ours(images)
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    apart = float((found - wanted).abs().max() / wanted.abs().max())
    assert apart <= tolerance, f"outputs differ by {apart:.2g}"


def made(name: str, small: Mapping[str, Any] | None = None, **kwargs: Any) -> nn.Module:
    """A timm model with random values in every parameter, for evaluation."""
    model: nn.Module = timm.create_model(name, **{**(small or {}), **kwargs})
    return shaken(model)


@torch.no_grad()
def shaken(model: Any, by: float = 0.02) -> Any:
    """Random values added to all parameters, so that nothing is as it was initialised."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * by)
    return model.eval()


def noise(size: int | tuple[int, int], channels: int = 3, count: int = 2) -> Tensor:
    """Images of noise."""
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(count, channels, height, width)


@contextlib.contextmanager
def _heard(lines: list[str]) -> Iterator[None]:
    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, ear = logging.getLogger("vitcompact"), Ear()
    level = logger.level
    logger.addHandler(ear)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(ear)
        logger.setLevel(level)
