"""timm architectures without memory: names and shapes only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitcompact.checkpoint.quiet import quiet_timm


class _SkipInit(TorchFunctionMode):
    """Makes in-place operations on tensors without memory do nothing: four fifths of a build are initialisation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__")
        if in_place and args and isinstance(args[0], Tensor) and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules made in here have names and shapes only (the `meta` device), and are made quickly."""
    with torch.device("meta"), _SkipInit():
        yield


def meta_model(name: str, **kwargs: Any) -> nn.Module:
    """A timm architecture without memory."""
    with quiet_timm(), without_memory():
        model: nn.Module = timm.create_model(name, pretrained=False, **kwargs)
    return model
