"""Tables of relative positions as timm makes them, and how they change with the window."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from timm.layers import RelPosBias, RelPosBiasTf, RelPosMlp, resize_rel_pos_bias_table
from timm.layers.pos_embed_rel import gen_relative_log_coords, gen_relative_position_index
from timm.models import beit, swin_transformer, swin_transformer_v2
from torch import Tensor, nn

from vitcompact.errors import UsageError
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


def rel_pos_bias(module: Any) -> RelativeBias | ContinuousBias | None:
    """What timm's `RelPosBias`, `RelPosBiasTf` or `RelPosMlp` adds; None for none."""
    if module is None:
        return None
    size = (int(module.window_size[0]), int(module.window_size[1]))
    if isinstance(module, RelPosMlp):
        return _from_mlp(
            module, module.mlp, module.rel_coords_log, module.relative_position_index.view(-1, module.window_area)
        )
    table = module.relative_position_bias_table.detach()
    if isinstance(module, RelPosBiasTf):
        return RelativeBias(table.flatten(1).T, _index_of_keys(size, table.device), size, _resize_tf)
    prefix = int(module.prefix_tokens)
    index = module.relative_position_index.view(module.window_area + prefix, -1)
    return RelativeBias(table, index, size, partial(_resize_rel_pos, prefix=prefix))


def refuse_rel_pos(module: nn.Module | None) -> str | None:
    """Why `rel_pos_bias` does not know a module, or None."""
    if module is None or type(module) in (RelPosBias, RelPosBiasTf, RelPosMlp):
        return None
    return f"its position bias is an unknown {type(module).__name__}"


def fixed_bias(table: Tensor, index: Tensor) -> RelativeBias:
    """A table `(heads, distances)` for one size of the feature map (LeViT and its kin)."""
    return RelativeBias(table.detach().T, index, (0, 0), _no_other_size)


def mlp_of_coordinates(mlp: Any, coords: Tensor, index: Tensor, tables: Any, **options: Any) -> ContinuousBias:
    """timm's `Mlp` over coordinates `(..., 2)` as a bias without a bound."""
    parts = (mlp.fc1, mlp.act, mlp.drop1, mlp.norm, mlp.fc2)
    return ContinuousBias(nn.Sequential(*parts), coords, index, tables, **options)


def _from_mlp(module: Any, mlp: Any, coords: Tensor, index: Tensor) -> ContinuousBias:
    tables = partial(_log_coordinates, pretrained=module.pretrained_window_size, mode=module.mode)
    options = {"bounded": module.mode == "swin", "num_prefix_tokens": int(module.prefix_tokens)}
    return mlp_of_coordinates(mlp, coords, index, tables, **options)


def _log_coordinates(table: Tensor, size: Grid, pretrained: Grid, mode: str) -> tuple[Tensor, Tensor]:
    coords = gen_relative_log_coords(size, pretrained, mode=mode, device=table.device, dtype=table.dtype)
    return coords, gen_relative_position_index(size, device=table.device)


def _no_other_size(table: Tensor, size: Grid, old: Grid) -> tuple[Tensor, Tensor]:
    raise UsageError(f"this table of position biases is for one image size; {size} cannot be made from it")


def _resize_rel_pos(table: Tensor, size: Grid, old: Grid, prefix: int) -> tuple[Tensor, Tensor]:
    index = gen_relative_position_index(size, class_token=prefix > 0, device=table.device)
    return _resized(table, size, old, 3 * prefix), index


def _resize_tf(table: Tensor, size: Grid, old: Grid) -> tuple[Tensor, Tensor]:
    shape = (table.shape[1], 2 * size[0] - 1, 2 * size[1] - 1)
    by_head = table.T.unflatten(1, (2 * old[0] - 1, 2 * old[1] - 1))
    resized = resize_rel_pos_bias_table(by_head, new_window_size=size, new_bias_shape=shape)
    return resized.flatten(1).T.contiguous(), _index_of_keys(size, table.device)


def _index_of_keys(size: Grid, device: torch.device) -> Tensor:
    """Rows of a table by key minus query, which is how TensorFlow's MaxViT counts."""
    return gen_relative_position_index(size, device=device).T.contiguous()


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
