"""Attention cores: the module that every attention layer can be rebuilt as, from the parts that its adapter names."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vitcompact.layers.attention import CompactAttention, HeadLayout
from vitcompact.layers.parts import AttentionParts
from vitcompact.models.base import AttentionSite
from vitcompact.models.layer_scale import output_scale, remove_scale, scaled
from vitcompact.models.registry import family_named


def parts_of(model: nn.Module, site: AttentionSite) -> AttentionParts:
    """The parts of a site's attention layer, which is still timm's."""
    return family_named(site.family).parts(model.get_submodule(site.name))


def build_core(
    parts: AttentionParts,
    layout: HeadLayout,
    *,
    alpha: bool = False,
    identity: bool = False,
    mean: bool = False,
    conv: bool = False,
    filter_rank: int = 0,
    num_prefix_tokens: int = 0,
    grid_size: tuple[int, int] | None = None,
    scale: Tensor | None = None,
) -> CompactAttention:
    """An attention core with `layout` that holds copies of an original layer's values.

    A hallucinated head keeps its own V and its columns of `proj` and takes its parent's map: the copy of the paper.

    Args:
        scale: LayerScale factors to absorb into `proj`, or None.
    """
    maps, heads = list(layout.maps), list(layout.heads)
    biases = {"q": parts.query_bias, "k": parts.key_bias, "v": parts.value_bias}
    core = CompactAttention(
        parts.dim,
        layout,
        parts.qk_dim,
        parts.v_dim,
        dim_out=parts.dim_out,
        key_heads=parts.key_heads,
        value_heads=parts.value_heads,
        projected=parts.proj_weight is not None,
        scale=parts.scale,
        packing=parts.packing,
        biases="".join(part for part, bias in biases.items() if bias is not None),
        call=copy.deepcopy(parts.call),
        reduction=copy.deepcopy(parts.reduction),
        value_reduction=copy.deepcopy(parts.value_reduction),
        norm=copy.deepcopy(parts.reduced_norm),
        query_norm=of_heads(parts.query_norm, maps),
        key_norm=of_heads(parts.key_norm, maps),
        query_pool=copy.deepcopy(parts.query_pool),
        key_pool=copy.deepcopy(parts.key_pool),
        value_pool=copy.deepcopy(parts.value_pool),
        value_path=None if parts.value_path is None else of_heads(parts.value_path, heads),
        residual_queries=parts.residual_queries,
        rotary=copy.deepcopy(parts.rotary),
        position_bias=None if parts.position_bias is None else of_heads(parts.position_bias, maps),
        query_position_bias=None if parts.query_position_bias is None else of_heads(parts.query_position_bias, maps),
        inner_norm=of_heads(parts.inner_norm, heads),
        gate=parts.gate is not None,
        gate_bias=parts.gate is not None and parts.gate.bias is not None,
        attention_dropout=parts.attention_dropout,
        output_dropout=copy.deepcopy(parts.output_dropout),
        alpha=alpha,
        identity=identity,
        mean=mean,
        conv=conv,
        filter_rank=filter_rank,
        num_prefix_tokens=num_prefix_tokens,
        grid_size=grid_size,
        attributes=parts.attributes,
    ).to(device=parts.query.device, dtype=parts.query.dtype)
    core.train(parts.training)
    _copy_values(core, parts, layout, biases, scale)
    for parameter in core.inner_norm.parameters():
        if parameter.shape == (core.attn_dim,):
            parameter.data = take_heads(parameter.data, heads, parts.v_dim)
    return core


def of_heads(module: nn.Module, heads: list[int]) -> nn.Module:
    """A copy of a part; where it has values for each head, those of some heads in that order."""
    copied = copy.deepcopy(module)
    keep = getattr(copied, "keep_heads", None)
    if callable(keep):
        keep(heads)
    return copied


def whole_core(model: nn.Module, site: AttentionSite) -> CompactAttention:
    """The site's layer as an attention core in which every head keeps its map; LayerScale absorbed."""
    parts = parts_of(model, site)
    layout = HeadLayout(tuple(range(parts.num_heads)), ((),) * parts.num_heads)
    return build_core(parts, layout, scale=output_scale(model, site.scale))


def core_of(model: nn.Module, site: AttentionSite) -> CompactAttention:
    """The attention core at a site; a layer that is still timm's is replaced by one in which every head is whole."""
    module = model.get_submodule(site.name)
    if isinstance(module, CompactAttention):
        return module
    core = whole_core(model, site)
    model.set_submodule(site.name, core)
    remove_scale(model, site.scale)
    return core


@torch.no_grad()
def _copy_values(
    core: CompactAttention,
    parts: AttentionParts,
    layout: HeadLayout,
    biases: dict[str, Tensor | None],
    scale: Tensor | None,
) -> None:
    maps, heads = list(layout.maps), list(layout.heads)
    shared = core.shared
    picks = {
        "q": (parts.query, heads if parts.residual_queries else maps, parts.qk_dim),
        "k": (parts.key, maps if shared is None else list(shared.keys), parts.qk_dim),
        "v": (parts.value, heads if shared is None else list(range(shared.values)), parts.v_dim),
    }
    for part, (values, index, width) in picks.items():
        if not any(part in group for group in parts.packing):
            continue
        weight, bias = core.rows(part)
        weight.copy_(take_heads(values, index, width))
        if bias is not None:  # a layer shared with a biased part has one, which is zero here
            given = biases[part]
            bias.copy_(torch.zeros_like(bias) if given is None else take_heads(given, index, width))
    if core.gate is not None and parts.gate is not None:
        core.gate.weight.copy_(take_heads(parts.gate.weight, heads, parts.v_dim))
        if core.gate.bias is not None:
            core.gate.bias.copy_(take_heads(parts.gate.bias, heads, parts.v_dim))
    if parts.proj_weight is not None:
        weight, bias = scaled(scale, parts.proj_weight, parts.proj_bias)
        in_order = weight.shape[1] != core.attn_dim
        core.load_projection(weight if in_order else take_heads(weight.T, heads, parts.v_dim).T, bias)


def take_heads(rows: Tensor, heads: list[int], width: int) -> Tensor:
    """The rows of some heads, `width` each, from a tensor whose first axis is all heads side by side."""
    index = torch.tensor(heads, device=rows.device)
    return rows.unflatten(0, (-1, width))[index].flatten(0, 1)


def grid_size_of(model: nn.Module) -> tuple[int, int] | None:
    """Rows and columns of a model's patches, None where it has no fixed grid."""
    size = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    return (int(size[0]), int(size[1])) if size is not None else None
