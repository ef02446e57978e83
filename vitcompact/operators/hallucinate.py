"""Hallucinated heads: which structure a spec means, and the values that copying gives it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vitcompact.errors import UsageError
from vitcompact.layers.attention import CompactAttention, HeadLayout
from vitcompact.layers.parts import AttentionParts
from vitcompact.models import AttentionSite, FfnSite, family_named
from vitcompact.models.layer_scale import output_scale, remove_scale, scaled
from vitcompact.models.plain_vit import no_patch_grid
from vitcompact.options.surgery import TERMS
from vitcompact.plan.schema import Form
from vitcompact.plan.specs import HallucinatedHead, HallucinateSpec


def make_spec(
    num_heads: int, parents: dict[int, int], terms: tuple[str, ...] = (), filter_rank: int = 0
) -> HallucinateSpec:
    """The spec for `parents` (hallucinated head -> kept head); maps with most children are stored first."""
    kept = [head for head in range(num_heads) if head not in parents]
    children = {head: sorted(child for child, parent in parents.items() if parent == head) for head in kept}
    order = sorted(kept, key=lambda head: (-len(children[head]), head))
    heads = tuple(HallucinatedHead(child, (parent,)) for parent in order for child in children[parent])
    paths = {term: term in terms for term in TERMS}
    return HallucinateSpec(num_heads, tuple(order), heads, **paths, filter_rank=filter_rank)


def layout_of(spec: HallucinateSpec) -> HeadLayout:
    """Where each head of `spec` is stored."""
    children = tuple(tuple(c.head for c in spec.hallucinated if c.parents[0] == head) for head in spec.kept)
    return HeadLayout(spec.kept, children)


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
        dim_out=parts.proj_weight.shape[0],
        scale=parts.scale,
        packing=parts.packing,
        biases="".join(part for part, bias in biases.items() if bias is not None),
        call=copy.deepcopy(parts.call),
        reduction=copy.deepcopy(parts.reduction),
        norm=copy.deepcopy(parts.reduced_norm),
        query_norm=of_heads(parts.query_norm, maps),
        key_norm=of_heads(parts.key_norm, maps),
        rotary=copy.deepcopy(parts.rotary),
        position_bias=None if parts.position_bias is None else of_heads(parts.position_bias, maps),
        inner_norm=copy.deepcopy(parts.inner_norm),
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
    parts = family_named(site.family).parts(model.get_submodule(site.name))
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
    picks = {
        "q": (parts.query, maps, parts.qk_dim),
        "k": (parts.key, maps, parts.qk_dim),
        "v": (parts.value, heads, parts.v_dim),
    }
    for part, (values, index, width) in picks.items():
        weight, bias = core.rows(part)
        weight.copy_(take_heads(values, index, width))
        if bias is not None:  # a layer shared with a biased part has one, which is zero here
            given = biases[part]
            bias.copy_(torch.zeros_like(bias) if given is None else take_heads(given, index, width))
    if core.gate is not None and parts.gate is not None:
        core.gate.weight.copy_(take_heads(parts.gate.weight, heads, parts.v_dim))
        if core.gate.bias is not None:
            core.gate.bias.copy_(take_heads(parts.gate.bias, heads, parts.v_dim))
    weight, bias = scaled(scale, parts.proj_weight, parts.proj_bias)
    core.proj.weight.copy_(take_heads(weight.T, heads, parts.v_dim).T)
    core.proj.bias.copy_(bias)


def take_heads(rows: Tensor, heads: list[int], width: int) -> Tensor:
    """The rows of some heads, `width` each, from a tensor whose first axis is all heads side by side."""
    index = torch.tensor(heads, device=rows.device)
    return rows.unflatten(0, (-1, width))[index].flatten(0, 1)


class Hallucinate:
    """Builds `CompactAttention` with copied values."""

    def build(
        self, model: nn.Module, site: AttentionSite | FfnSite, spec: HallucinateSpec, form: Form
    ) -> CompactAttention:
        """See `Operator.build`; a LayerScale after the layer is absorbed into `proj`."""
        assert isinstance(site, AttentionSite)
        if spec.conv and (reason := no_patch_grid(model)) is not None:
            raise UsageError(f"{site.name}: no conv path can be built: {reason}")
        parts = family_named(site.family).parts(model.get_submodule(site.name))
        core = build_core(
            parts,
            layout_of(spec),
            alpha=form == "training",
            identity=spec.identity,
            mean=spec.mean,
            conv=spec.conv,
            filter_rank=spec.filter_rank,
            num_prefix_tokens=int(getattr(model, "num_prefix_tokens", 0)),
            grid_size=_grid_size(model),
            scale=output_scale(model, site.scale),
        )
        model.set_submodule(site.name, core)
        remove_scale(model, site.scale)
        return core


def _grid_size(model: nn.Module) -> tuple[int, int] | None:
    size = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    return (int(size[0]), int(size[1])) if size is not None else None
