"""Activations of one block between two steps: in memory up to a limit, then on disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitcompact.errors import UsageError
from vitcompact.utils.scratch import scratch


class ActivationStore:
    """Tensors by key; past `limit_bytes` in memory a new one is written to a temporary folder instead.

    Use as a context manager: leaving it removes the folder.
    """

    def __init__(self, limit_bytes: float) -> None:
        self.limit_bytes = limit_bytes
        self.peak_bytes = 0
        self.spilled = 0
        self._memory: dict[tuple[str, int], Tensor] = {}
        self._folder: Path | None = None
        self._held = ExitStack()

    def __enter__(self) -> ActivationStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.clear()
        self._folder = None
        self._held.close()

    def put(self, kind: str, batch: int, tensor: Tensor) -> None:
        """Keep `tensor` under `(kind, batch)`, replacing what was there."""
        self.drop(kind, batch)
        if self._bytes() + _size(tensor) <= self.limit_bytes:
            self._memory[kind, batch] = tensor
            self.peak_bytes = max(self.peak_bytes, self._bytes())
            return
        with _spill_errors(_size(tensor)):
            save_file({"x": tensor.contiguous()}, self._path(kind, batch))
        self.spilled += 1

    def get(self, kind: str, batch: int) -> Tensor:
        """The tensor under `(kind, batch)`.

        Raises:
            KeyError: nothing was kept there.
        """
        if (kind, batch) in self._memory:
            return self._memory[kind, batch]
        path = self._path(kind, batch)
        if not path.exists():
            raise KeyError((kind, batch))
        with _spill_errors():
            return load_file(path)["x"]

    def drop(self, kind: str, batch: int) -> None:
        """Forget the tensor under `(kind, batch)`, if any."""
        if self._memory.pop((kind, batch), None) is None and self._folder is not None:
            with _spill_errors():
                self._path(kind, batch).unlink(missing_ok=True)

    def _bytes(self) -> int:
        return sum(map(_size, self._memory.values()))

    def _path(self, kind: str, batch: int) -> Path:
        if self._folder is None:
            self._folder = self._held.enter_context(scratch())
        return self._folder / f"{kind}-{batch}.safetensors"


@contextmanager
def _spill_errors(num_bytes: int | None = None) -> Iterator[None]:
    """What the disk for temporary files refuses, as one message."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        size = "" if num_bytes is None else f" of {num_bytes:,} bytes"
        raise UsageError(
            f"activations{size} cannot be put aside on disk ({reason}): name another folder in "
            "the environment variable TMPDIR, or give fewer images (`num_samples`)"
        ) from error


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
