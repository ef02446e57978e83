"""The size that a model was built for, where its configuration may say another one."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from vitcompact.models.cost import meta_copy

Size = tuple[int, int]
_STEP, _LARGEST = 32, 1024
_tried: WeakKeyDictionary[nn.Module, Size | None] = WeakKeyDictionary()


def built_size(model: nn.Module, cfg: dict[str, Any]) -> Size | None:
    """Height and width in pixels of the images that a model takes, None where any will do or nothing says.

    That is what its first patches are cut from (`patch_embed.img_size`; CrossViT has `img_size` itself, CoaT and Twins
    several such layers). A model of a fixed size that has none (LeViT, VOLO, Hiera) is tried, on a copy without
    data: the size of its configuration, else the next square that it takes.
    """
    layers = (layer for layer in model.modules() if type(layer).__name__ == "PatchEmbed")
    for module in (getattr(model, "patch_embed", None), model, next(layers, None)):
        size = getattr(module, "img_size", None)
        if isinstance(size, int):
            return size, size
        if isinstance(size, (tuple, list)) and len(size) == 2:
            return int(size[0]), int(size[1])
    if not cfg.get("fixed_input_size") or not cfg.get("input_size"):
        return None
    if model not in _tried:
        _tried[model] = _found_size(model, cfg["input_size"])
    return _tried[model]


def _found_size(model: nn.Module, said: tuple[int, int, int]) -> Size | None:
    copy = meta_copy(model).eval()
    channels, *own = said
    if _takes(copy, (channels, *own)):
        return None
    sides = sorted(range(_STEP, _LARGEST + 1, _STEP), key=lambda side: abs(side - max(own)))
    return next(((side, side) for side in sides if _takes(copy, (channels, side, side))), None)


def _takes(model: nn.Module, size: tuple[int, ...]) -> bool:
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    try:
        with torch.no_grad():
            model(torch.empty(1, *size, device="meta", dtype=dtype))
    except Exception:  # whatever a model says to images of another size
        return False
    return True
