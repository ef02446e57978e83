"""Exported files as models: what evaluates and times timm modules takes them too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vitcompact.checkpoint.quiet import first_line
from vitcompact.errors import CheckpointError, DataError, UsageError, VitCompactError, is_out_of_memory
from vitcompact.exporting.base import Opened
from vitcompact.exporting.registry import format_of
from vitcompact.utils.files import restored
from vitcompact.utils.reading import user_path

READABLE = (".onnx", ".xml", ".pt2")


class ExportedModel(nn.Module):
    """A file behind the face of a timm classifier: float32 images `(batch, channels, height, width)` to outputs.

    Copies are the model itself, which has no weights of its own and runs on the CPU.
    """

    def __init__(self, opened: Opened, path: Path) -> None:
        super().__init__()
        self.description = opened.description.located(path.parent)
        self.runtime, self.path = opened.runtime, path
        self.num_classes = opened.description.num_classes
        self.pretrained_cfg: Any = opened.description.pretrained_cfg
        self._run = opened.run

    def forward(self, images: Tensor) -> Tensor:
        """Outputs of the file's own runtime.

        Raises:
            DataError: images of another size than the file was made for.
        CheckpointError: the file does not run, or its outputs are not what it says.
        """
        wanted = self.description.input.input_size
        if tuple(images.shape[1:]) != wanted:
            given, takes = (" x ".join(map(str, size)) for size in (images.shape[1:], wanted))
            raise DataError(f"images are {given}, {self.path} was exported for {takes}")
        with file_errors(self.path, "does not run"):
            outputs = self._run(images.float().cpu())
        wide = () if not self.num_classes else (self.num_classes,)
        if outputs.shape[:1] != images.shape[:1] or not outputs.is_floating_point() or outputs.shape[1:] != wide != ():
            raise CheckpointError(f"{self.path} gives outputs {tuple(outputs.shape)}, not those that it describes")
        return outputs

    def __deepcopy__(self, memo: dict[int, object]) -> ExportedModel:
        return self


@contextmanager
def file_errors(path: Path, what: str) -> Iterator[None]:
    """Whatever a runtime says of a file, as one error; the runtimes' own classes share no base.

    Raises:
        CheckpointError: see above.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, VitCompactError) or is_out_of_memory(error):
            raise
        raise CheckpointError(f"{path} {what}: {first_line(error)}") from error


def is_exported(source: str | Path | None) -> bool:
    """Whether a SOURCE names a file of a format that `open_exported` reads."""
    return source is not None and Path(source).suffix.lower() in READABLE


def open_exported(path: str | Path) -> ExportedModel:
    """An exported file as a model.

    Raises:
        UsageError: no such file, a format whose files are not read back, or its runtime is not installed.
        CheckpointError: damaged, hostile, or not written by vitcompact.
    """
    path = restored(user_path(path))
    form = format_of(path)
    if form.suffix not in READABLE:
        raise UsageError(f"{path}: {form.title} files are not read back; {', '.join(READABLE)} are")
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    if (size := path.stat().st_size) > form.largest:
        raise CheckpointError(f"{path} is refused: {size:,} bytes, a {form.title} file has at most {form.largest:,}")
    form.require(form.modules, form.extra)
    with file_errors(path, f"is damaged or no {form.title} file"):
        opened = form.open(path)
    if opened is None:
        raise CheckpointError(f"{path} cannot be run on this system")
    return ExportedModel(opened, path)
