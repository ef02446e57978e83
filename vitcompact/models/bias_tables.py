"""Tables of relative positions as timm makes them, and how they change with the window."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

from timm.layers import resize_rel_pos_bias_table
from timm.models import beit, swin_transformer, swin_transformer_v2
from torch import Tensor

from vitcompact.layers.calls import Grid
from vitcompact.layers.position import ContinuousBias, RelativeBias


def swin_bias(module: Any) -> RelativeBias:
    """The bias table of a Swin window."""
    table, index = module.relative_position_bias_table.detach(), module.relative_position_index
    return RelativeBias(table, index, module.window_size, _resize_swin)


def beit_bias(module: Any) -> RelativeBias | None:
    """The bias table of a BEiT layer, with three rows for the class token; None where the layer has none."""
    if module.relative_position_bias_table is None:
        return None
    table, index = module.relative_position_bias_table.detach(), module.relative_position_index
    return RelativeBias(table, index, module.window_size, _resize_beit)


def continuous_bias(module: Any) -> ContinuousBias:
    """The MLP over relative coordinates of a Swin V2 window."""
    tables = partial(_coordinates, pretrained=module.pretrained_window_size)
    return ContinuousBias(module.cpb_mlp, module.relative_coords_table, module.relative_position_index, tables)


def _resize_swin(table: Tensor, size: Grid, old: Grid) -> tuple[Tensor, Tensor]:
    return _resized(table, size, old, 0), swin_transformer.get_relative_position_index(*size, device=table.device)


def _resize_beit(table: Tensor, size: Grid, old: Grid) -> tuple[Tensor, Tensor]:
    return _resized(table, size, old, 3), beit.gen_relative_position_index(size, device=table.device)


def _resized(table: Tensor, size: Grid, old: Grid, extra_rows: int) -> Tensor:
    shape = ((2 * size[0] - 1) * (2 * size[1] - 1) + extra_rows, table.shape[1])
    resized: Tensor = resize_rel_pos_bias_table(table, new_window_size=size, new_bias_shape=shape, old_window_size=old)
    return resized


def _coordinates(table: Tensor, size: Grid, pretrained: Grid) -> tuple[Tensor, Tensor]:
    windows = SimpleNamespace(window_size=size, pretrained_window_size=pretrained)
    make = swin_transformer_v2.WindowAttention._make_pair_wise_relative_positions
    coords, index = make(windows, device=table.device, dtype=table.dtype)
    return coords, index
