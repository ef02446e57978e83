"""In which number format weights are stored, and how many bytes they take so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn

from vitcompact.checkpoint.flax import SUFFIX, read_flax
from vitcompact.checkpoint.formats import read_torch
from vitcompact.checkpoint.quiet import timm_errors
from vitcompact.checkpoint.read import WRAPPERS
from vitcompact.errors import CheckpointError

_NAMES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_SAVED = (torch.float16, torch.bfloat16)


def stored_dtype(path: Path) -> torch.dtype:
    """The format that most numbers of a weights file have: float16, bfloat16, or float32 for all others.

    Raises:
        CheckpointError: the file cannot be read.
    """
    if path.name.lower().endswith(".safetensors"):
        return most_common(_header(path))
    if path.name.lower().endswith(SUFFIX):
        return dtype_of(read_flax(path))
    content = read_torch(path)
    inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    return dtype_of(inner)


def dtype_of(tensors: Mapping[str, Any]) -> torch.dtype:
    """The same of tensors by name."""
    floats = (t for t in tensors.values() if isinstance(t, torch.Tensor) and t.is_floating_point())
    return most_common((tensor.dtype, tensor.numel()) for tensor in floats)


def most_common(numbers: Iterable[tuple[torch.dtype, int]]) -> torch.dtype:
    """The format of most numbers, of formats with how many numbers have each; float32 for one that is not saved."""
    counts: Counter[torch.dtype] = Counter()
    for dtype, count in numbers:
        counts[dtype] += count
    found = counts.most_common(1)[0][0] if counts else torch.float32
    return found if found in _SAVED else torch.float32


def weight_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of a model's weights and buffers as `save` writes them with `dtype`, without the file's header."""
    tensors = model.state_dict().values()
    return sum(t.numel() * (dtype.itemsize if t.is_floating_point() else t.element_size()) for t in tensors)


def _header(path: Path) -> list[tuple[torch.dtype, int]]:
    with timm_errors(CheckpointError, f"{path} is damaged"), safetensors.safe_open(path, framework="pt") as file:
        slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118 - it is no mapping
        known = ((_NAMES.get(each.get_dtype()), each.get_shape()) for each in slices)
        return [(dtype, torch.Size(shape).numel()) for dtype, shape in known if dtype is not None]
