"""What a format is: which options it takes, which packages it needs, how it is written and run."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vitcompact.errors import UsageError
from vitcompact.exporting.description import Description
from vitcompact.options.exporting import ExportOptions

Run = Callable[[Tensor], Tensor]
"""float32 images (batch, channels, height, width) to float32 outputs, by the runtime that a file was made for."""


@dataclass(frozen=True)
class Job:
    """What is to be written.

    Attributes:
        model: folded, in eval mode, float32, on the CPU.
        options: of the file.
        description: what the file will say of itself.
        images: prepared images to calibrate int8 on, in batches; empty for other number formats.
    """

    model: nn.Module
    options: ExportOptions
    description: Description
    images: Iterable[Tensor] = ()


@dataclass(frozen=True)
class Opened:
    """A file that can be run: its description, the function, and what runs it."""

    description: Description
    run: Run
    runtime: str


class Format(ABC):
    """One file format with its runtime. Adding one: a file with a subclass, and a line in `registry.py`."""

    suffix: ClassVar[str]
    title: ClassVar[str]
    modules: ClassVar[tuple[str, ...]] = ()
    """Packages that are imported to write and run it."""
    extra: ClassVar[str] = ""
    """Extra of this package that installs them."""
    int8_modules: ClassVar[tuple[str, ...]] = ()
    int8_extra: ClassVar[str] = ""
    """What int8 needs besides."""
    precisions: ClassVar[tuple[str, ...]] = ("float32",)
    extra_suffixes: ClassVar[tuple[str, ...]] = ()
    """Of further files beside the named one."""
    largest: ClassVar[int] = 1 << 36
    """Bytes of the named file that is read; what describes a graph alone is smaller."""
    attention: ClassVar[str] = "auto"
    """Backend of `CompactAttention` that the converter makes most of."""
    how_to_run: ClassVar[str] = ""
    """A line of Python that runs the file `{path}` on prepared `images`, a numpy array."""

    def check(self, options: ExportOptions) -> None:
        """Refuse what this format cannot be, and what is not installed.

        Raises:
            UsageError: see above.
        """
        if options.precision not in self.precisions:
            name = {"float16": "fp16", "int8": "int8"}[options.precision]
            raise UsageError(f"{self.suffix} files are written in {', '.join(self.precisions)}: leave out `{name}`")
        self.require(self.modules, self.extra)
        if options.int8:
            self.require(self.int8_modules, self.int8_extra)

    def require(self, modules: tuple[str, ...], extra: str) -> None:
        """Raises UsageError, which names the extra, where one of `modules` is not installed."""
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            raise UsageError(
                f"{self.title} needs {' and '.join(missing)}, not installed here: pip install 'vitcompact[{extra}]'"
            )

    def reason(self, said: str) -> str:
        """Of what the converter said when it failed, the line that tells why."""
        return next((line.strip() for line in said.splitlines() if line.strip()), "")

    @abstractmethod
    def write(self, job: Job, path: Path) -> None:
        """Write the file, and what belongs beside it."""

    @abstractmethod
    def open(self, path: Path) -> Opened | None:
        """The file, ready to run; None where its runtime does not exist on this system.

        Raises:
            CheckpointError: damaged, hostile, or not written by vitcompact.
        """

    def loaded(self, program: ExportedProgram, tensors: Sequence[Tensor]) -> list[Callable[[], object]]:
        """A traced program in this format's runtime, as a written file would run: a run for each output.

        Each computes on `tensors` what its output needs, and nothing else.

        Raises:
            UsageError: this runtime times nothing.
        """
        raise UsageError(f"{self.title} is no backend that times models")


def trace(
    model: nn.Module, input_size: tuple[int, int, int], batch: int | None = None, most: int | None = None
) -> ExportedProgram:
    """`torch.export` of a model in eval mode.

    Args:
        input_size: (channels, height, width).
        batch: the only batch size; None for any.
        most: largest batch of any size.
    """
    example = torch.zeros(batch or 2, *input_size)
    axis = None if batch else Dim("batch", min=1, max=most)
    with torch.no_grad():
        return torch.export.export(model, (example,), dynamic_shapes=({0: axis} if axis else None,))


class Half(nn.Module):
    """A model in float16 between float32 images and float32 outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.half()

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.model(images.half())
        return out.float()
