"""Image and window sizes, read off tables of positions and the buffers of attention windows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

Size = tuple[int, int]
_COMMON = (
    224,
    256,
    384,
    192,
    160,
    128,
    96,
    64,
    48,
    32,
    240,
    288,
    320,
    336,
    392,
    416,
    448,
    480,
    512,
    518,
    576,
    640,
    768,
)
_TABLE = "relative_position_bias_table"


def pair(sides: Any) -> Size | None:
    """Height and width, where a model has them as one number or as two."""
    if isinstance(sides, int):
        return sides, sides
    return (int(sides[0]), int(sides[1])) if isinstance(sides, (tuple, list)) and len(sides) == 2 else None


def size_of_grid(state_dict: Mapping[str, Tensor], model: nn.Module, hint: Size | None) -> Size | None:
    """Image size (height, width in pixels) of the table of positions, None where it says nothing or agrees.

    The table `pos_embed` has shape (1, prefix tokens + grid height * grid width, dim). A grid of another shape than a
    square is not told by its length: then only `hint` can be right.
    """
    own, table = getattr(model, "pos_embed", None), state_dict.get("pos_embed")
    patch_embed: Any = getattr(model, "patch_embed", None)
    num_patches, grid = getattr(patch_embed, "num_patches", None), pair(getattr(patch_embed, "grid_size", None))
    size = pair(getattr(patch_embed, "img_size", None))
    if table is None or not isinstance(own, Tensor) or not isinstance(num_patches, int) or not grid or not size:
        return None
    if table.ndim != 3 or own.ndim != 3:
        return None
    # Pixels per token along each side: the patch size, or the stride of a convolutional stem.
    pixels = (size[0] // grid[0], size[1] // grid[1])
    length = table.shape[1] - (own.shape[1] - num_patches)
    if hint is not None and (hint[0] // pixels[0]) * (hint[1] // pixels[1]) == length:
        return hint
    side = math.isqrt(max(length, 0))
    if length == num_patches or side < 1 or side * side != length:
        return None
    return side * pixels[0], side * pixels[1]


def window_of(state_dict: Mapping[str, Tensor], raw: Mapping[str, Tensor], model: nn.Module) -> dict[str, Any]:
    """The argument `window_size` of an architecture with attention windows, where the file has others than `model`."""
    name = next((name for name in state_dict if name.endswith(f".{_TABLE}") and state_dict[name].ndim == 2), None)
    module = name.removesuffix(f".{_TABLE}") if name else "layers.0.blocks.0.attn"
    index = next((raw[key] for key in raw if key.endswith(f"{module}.relative_position_index")), None)
    side = math.isqrt(index.shape[0]) if index is not None and index.ndim == 2 else 0
    if name is not None:
        side = (math.isqrt(state_dict[name].shape[0]) + 1) // 2
        if (2 * side - 1) ** 2 != state_dict[name].shape[0]:
            return {}  # a table with entries for a class token: of a whole grid, no window
    try:
        own = model.get_submodule(module).window_size
    except AttributeError:
        return {}
    return {"window_size": side} if side and isinstance(own, tuple) and side not in own else {}


def size_of_masks(raw: Mapping[str, Tensor]) -> Size | None:
    """Image size that the masks of shifted windows were made for, shape (windows, area, area); square ones only."""
    mask = next((raw[name] for name in raw if name.endswith("layers.0.blocks.1.attn_mask")), None)
    stem = next((raw[name] for name in raw if name.endswith("patch_embed.proj.weight")), None)
    if mask is None or stem is None or mask.ndim != 3:
        return None
    windows, window = math.isqrt(mask.shape[0]), math.isqrt(mask.shape[1])
    if windows**2 != mask.shape[0] or window**2 != mask.shape[1]:
        return None
    return windows * window * stem.shape[-2], windows * window * stem.shape[-1]


def sizes_to_try(state_dict: Mapping[str, Tensor], model: nn.Module, hint: Size | None) -> Iterator[Size]:
    """Image sizes at which tables that depend on it may agree, the likeliest first."""
    tried: set[Size] = set()
    for size in _sizes(state_dict, model, hint):
        if size not in tried:
            tried.add(size)
            yield size


def _sizes(state_dict: Mapping[str, Tensor], model: nn.Module, hint: Size | None) -> Iterator[Size]:
    if hint is not None:
        yield hint
    patch = pair(getattr(getattr(model, "patch_embed", None), "patch_size", None)) or (16, 16)
    table = next((state_dict[name] for name in state_dict if name.endswith(_TABLE)), None)
    if table is not None and table.ndim == 2:
        for entries in (table.shape[0], table.shape[0] - 3):
            side = (math.isqrt(max(entries, 0)) + 1) // 2
            for stride in (1, 8):  # of a whole grid; of windows as wide as the last of four stages
                yield side * patch[0] * stride, side * patch[1] * stride
    yield from ((side, side) for side in _COMMON)
