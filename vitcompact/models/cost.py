"""Parameters and multiply-accumulates of a model, counted on tensors without data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vitcompact.layers.branches import fuse_layers
from vitcompact.utils.copies import copy_of


@dataclass(frozen=True)
class Cost:
    """`params`: number of parameters. `macs`: multiply-accumulates per image at the given input size.

    Linear layers, convolutions and the two products of attention are counted, unpadded.
    """

    params: int
    macs: int


def count(model: nn.Module, input_size: tuple[int, int, int], *, spent: bool = False) -> Cost:
    """Count a model in its folded form: re-parameterised branches are fused away first, on a copy.

    The copy lives on the meta device, where attention is always computed by plain products that the counter sees
    (some releases of torch miss the CPU's fused kernel) and padding of kernels plays no part.

    Args:
        input_size: `(channels, height, width)` of one image.
        spent: `model` is a `meta_copy` that nobody needs afterwards: it is changed instead of copied once more.
    """
    meta, counter = _counted(model, input_size, spent)
    params = sum(parameter.numel() for parameter in meta.parameters())
    return Cost(params, counter.get_total_flops() // 2)


def count_modules(
    model: nn.Module, names: Iterable[str], input_size: tuple[int, int, int], *, spent: bool = False
) -> dict[str, Cost]:
    """Like `count`, of single modules by their paths; the empty path is the model."""
    meta, counter = _counted(model, input_size, spent)
    flops = counter.get_flop_counts()
    found = {}
    for name in names:
        params = sum(parameter.numel() for parameter in meta.get_submodule(name).parameters())
        found[name] = Cost(
            params, sum(flops.get(f"{type(meta).__name__}.{name}" if name else "Global", {}).values()) // 2
        )
    return found


def _counted(model: nn.Module, input_size: tuple[int, int, int], spent: bool) -> tuple[nn.Module, FlopCounterMode]:
    """A folded copy of the model's structure, and a counter that has seen it run on one image."""
    meta = model if spent else meta_copy(model)
    meta.eval().requires_grad_(False)  # the counter trips over parameters given to modules
    fuse_layers(meta)
    for module in meta.modules():
        if hasattr(module, "backend"):
            module.backend = "matmul"  # type: ignore[assignment]
        if getattr(module, "fused_attn", False):
            module.fused_attn = False  # type: ignore[assignment]
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, _KnownShapes():
        meta(torch.empty(1, *input_size, device="meta"))
    return meta, counter


class _KnownShapes(TorchDispatchMode):
    """Three operations whose shapes torch works out in Python, which is most of a counting's time; the sums are equal.

    Inside a counter, which sees the product of `addmm` as the `mm` that it is.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        aten, kwargs = torch.ops.aten, kwargs or {}
        if func is aten.addmm.default:
            return aten.mm.default(args[1], args[2])
        if func is aten.gelu.default:
            return torch.empty_like(args[0])
        if func is aten.native_layer_norm.default:
            images, shape = args[:2]
            statistics = images.shape[: images.dim() - len(shape)] + (1,) * len(shape)
            return torch.empty_like(images), images.new_empty(statistics), images.new_empty(statistics)
        return func(*args, **kwargs)


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy of a model's structure whose tensors have shapes but no data (and take no memory)."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy_of(model, memo)
