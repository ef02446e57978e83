"""Reads weights files without running code in them, without huge allocations and with one clear error each."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models import clean_state_dict
from torch import Tensor

from vitcompact.checkpoint.formats import read_safetensors, read_torch
from vitcompact.errors import CheckpointError, UsageError

logger = logging.getLogger("vitcompact")

SUFFIXES = (".safetensors", ".pt", ".pth", ".pth.tar", ".bin")
# Where training scripts put the weights; averaged (EMA) weights first, as timm does.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
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
        path: the file.
        state_dict: tensors by name, wrappers and `module.` prefixes removed.
        architecture: name that timm's training script recorded, if any.
        img_size: image size (height and width in pixels) that it recorded, if any.
    """

    path: Path
    state_dict: dict[str, Tensor]
    architecture: str | None = None
    img_size: tuple[int, int] | None = None


def has_weights_suffix(path: Path) -> bool:
    """Whether the file name ends like a weights file."""
    return path.name.lower().endswith(SUFFIXES)


def read_weights(path: Path) -> Weights:
    """Read a weights file (`.safetensors`, `.pt`, `.pth`, `.pth.tar` or `.bin`).

    Warns, naming the first tensor, when weights are not finite.

    Raises:
        UsageError: no such file, or a name that does not end like a weights file.
        CheckpointError: empty, truncated, not a checkpoint, without tensors, or a pickle with code in it.
    """
    _check_file(path)
    if path.name.lower().endswith(".safetensors"):
        content: Any = read_safetensors(path)
    else:
        content = read_torch(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a dictionary of tensors")
    key = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
    inner = content if key is None else content[key]
    tensors = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(sorted(map(str, inner))[:8]) or "none"
        raise CheckpointError(
            f"{path} holds no tensors (keys: {keys}); expected a state dict, alone or under {', '.join(WRAPPERS)}"
        )
    _check_claims(path, tensors)
    state_dict: dict[str, Tensor] = clean_state_dict(tensors)
    _warn_not_finite(path, state_dict)
    return Weights(path, state_dict, *_recorded(content if key else {}))


def weights_file_of(directory: Path) -> Path:
    """The weights file of a directory in timm's hub layout.

    Raises:
        CheckpointError: there is none.
    """
    for name in _PREFERRED:
        if (directory / name).is_file():
            return directory / name
    for suffix in SUFFIXES:
        files = sorted(directory.glob(f"*{suffix}"))
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


def _check_claims(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that claim far more elements than the file stores (a stride of 0 makes that possible)."""
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    size = path.stat().st_size
    if claimed > 2 * size + _CLAIM_SLACK_BYTES:
        raise CheckpointError(f"{path} is refused: its tensors claim {claimed:,} bytes, the file has {size:,}")


def _recorded(content: Mapping[str, Any]) -> tuple[str | None, tuple[int, int] | None]:
    """Architecture and image size in a checkpoint of timm's training script (keys `arch` and `args`)."""
    recorded = content.get("args")
    args = vars(recorded) if isinstance(recorded, argparse.Namespace) else recorded
    args = args if isinstance(args, Mapping) else {}
    names = (content.get("arch"), args.get("model"))
    architecture = next((name for name in names if isinstance(name, str) and name), None)
    size = args.get("img_size")
    if size is None and isinstance(args.get("input_size"), (list, tuple)):
        size = args["input_size"][-2:]
    if isinstance(size, int):
        size = (size, size)
    valid = isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(s, int) and s > 0 for s in size)
    return architecture, (size[0], size[1]) if valid and size else None


def _warn_not_finite(path: Path, state_dict: Mapping[str, Tensor]) -> None:
    for name, tensor in state_dict.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            logger.warning("%s: tensor %s holds NaN or infinite values", path, name)
            return
