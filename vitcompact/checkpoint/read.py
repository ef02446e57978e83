"""Reads weights files without running code in them, without huge allocations and with one clear error each."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitcompact.checkpoint.boxes import WRAPPERS, StateDict, choose_key, find_boxes, select_box
from vitcompact.checkpoint.claims import check_tensors
from vitcompact.checkpoint.facts import Facts, facts_beside, facts_of
from vitcompact.checkpoint.flax import SUFFIX as FLAX_SUFFIX
from vitcompact.checkpoint.flax import read_flax
from vitcompact.checkpoint.formats import read_safetensors, read_torch
from vitcompact.checkpoint.shards import INDEX_SUFFIX, files_of, index_of
from vitcompact.errors import CheckpointError, UsageError

logger = logging.getLogger("vitcompact")

SUFFIXES = (".safetensors", ".pt", ".pth", ".pth.tar", ".bin", ".ckpt", FLAX_SUFFIX, INDEX_SUFFIX)
# A directory may hold several weights files; timm looks for them in this order.
_PREFERRED = (
    *("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"),
    *(f"open_clip_{stem}" for stem in ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")),
)
_CLAIM_SLACK_BYTES = 1 << 26


@dataclass(frozen=True)
class Weights:
    """What a weights file holds.

    Attributes:
        path: the file; of several, their index.
        boxes: the state dicts in it, by the keys that lead to them; wrappers and `module.` prefixes removed.
        facts: what is recorded of the model, in the file and next to it.
    """

    path: Path
    boxes: Mapping[str, StateDict]
    facts: Facts = field(default_factory=Facts)

    @property
    def state_dict(self) -> StateDict:
        """The weights, where they can be told from what else there is: the largest state dict, averaged ones first.

        Raises:
            UsageError: there are several, and a key has to say which.
        """
        most = max(len(box) for box in self.boxes.values())
        return self.boxes[choose_key((key for key, box in self.boxes.items() if 2 * len(box) > most), str(self.path))]

    @property
    def architecture(self) -> str | None:
        """The name that is recorded, if any."""
        return self.facts.architecture

    @property
    def img_size(self) -> tuple[int, int] | None:
        """Image size (height and width in pixels) that is recorded, if any."""
        return self.facts.args.get("img_size")

    def only(self, key: str | None) -> Weights:
        """With nothing but the state dict under `key`; None leaves them all.

        Raises:
            UsageError: there is none.
        """
        if key is None:
            return self
        return Weights(self.path, {key: select_box(self.boxes, key, str(self.path))}, self.facts)


def has_weights_suffix(path: Path) -> bool:
    """Whether the file name ends like a weights file."""
    return path.name.lower().endswith(SUFFIXES)


def read_weights(path: Path) -> Weights:
    """Read a weights file, or all files of an index.

    Kinds: `.safetensors`, `.pt`, `.pth`, `.ckpt`, `.bin`, Google's `.npz`, `.index.json`.

    Warns, naming the first tensor, when weights are not finite.

    Raises:
        UsageError: no such file, or a name that does not end like a weights file.
        CheckpointError: empty, truncated, not a checkpoint, without tensors, or a pickle with code in it.
    """
    path = index_of(path) or path
    _check_file(path)
    content: dict[Any, Any] = {}
    parts = [file for file in files_of(path) if not file.name.endswith(INDEX_SUFFIX)]
    for part in parts:
        content |= _read(part)
    boxes = find_boxes(content)
    if not boxes:
        keys = ", ".join(sorted(map(str, content))[:8]) or "none"
        raise CheckpointError(
            f"{path} holds no tensors (keys: {keys}); expected a state dict, alone or under {', '.join(WRAPPERS)}"
        )
    for box in boxes.values():
        check_tensors(box, str(path))
    _check_claims(path, parts, boxes)
    for box in boxes.values():
        _warn_not_finite(path, box)
    return Weights(path, boxes, facts_of(content, path.parent).over(facts_beside(path)))


def _read(path: Path) -> Mapping[Any, Any]:
    _check_file(path)
    name = path.name.lower()
    content: Any
    if name.endswith(FLAX_SUFFIX):
        content = read_flax(path)
    else:
        content = read_safetensors(path) if name.endswith(".safetensors") else read_torch(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a dictionary of tensors")
    return content


def weights_file_of(directory: Path) -> Path:
    """The weights file of a directory in timm's hub layout.

    Raises:
        CheckpointError: there is none.
    """
    for name in _PREFERRED:
        if (directory / name).is_file():
            return directory / name
    for suffix in (INDEX_SUFFIX, *(suffix for suffix in SUFFIXES if suffix != FLAX_SUFFIX)):
        files = sorted(file for file in directory.glob(f"*{suffix}") if file.is_file())
        if files:
            return files[0]
    raise CheckpointError(f"{directory} holds no weights file; expected model.safetensors")


def _check_file(path: Path) -> None:
    if not path.exists():
        raise UsageError(f"no such file: {path}")
    if not path.is_file():
        raise UsageError(f"{path} is not a file; expected a weights file ({', '.join(SUFFIXES)})")
    if not has_weights_suffix(path):
        raise UsageError(f"{path}: unknown kind of weights file; accepted: {', '.join(SUFFIXES)}")
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty")


def _check_claims(path: Path, parts: list[Path], boxes: Mapping[str, StateDict]) -> None:
    """Refuse tensors that claim far more elements than the file stores (a stride of 0 makes that possible)."""
    tensors = {id(tensor): tensor for box in boxes.values() for tensor in box.values()}
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    size = sum(part.stat().st_size for part in parts)
    if claimed > 2 * size + _CLAIM_SLACK_BYTES:
        raise CheckpointError(f"{path} is refused: its tensors claim {claimed:,} bytes, the file has {size:,}")


def _warn_not_finite(path: Path, state_dict: Mapping[str, Tensor]) -> None:
    for name, tensor in state_dict.items():
        if not _all_finite(tensor):
            logger.warning("%s: tensor %s holds NaN or infinite values", path, name)
            return


def _all_finite(tensor: Tensor) -> bool:
    """Of whatever kind the numbers are and however they are stored; those that are not looked at count as finite."""
    if tensor.is_quantized or not tensor.is_floating_point() or tensor.layout != torch.strided:
        return True
    try:  # eight bits and fewer: torch compares few of their kinds, and converts not all
        return bool(torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all())
    except (RuntimeError, NotImplementedError):
        return True
