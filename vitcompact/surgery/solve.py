"""Solving one site from the streams: pairing and refit of heads, truncation and refit of an FFN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vitcompact.analysis.similarity import MapSimilarity
from vitcompact.families import AttentionSite, FfnSite
from vitcompact.layers.attention import CompactAttention
from vitcompact.layers.factor import FactorizedLinear
from vitcompact.layers.pointwise import matrix
from vitcompact.operators import attention_fit, ffn_fit
from vitcompact.operators.absorb import output_scale, scaled
from vitcompact.operators.factorize import plain_svd
from vitcompact.operators.hallucinate import make_spec, whole_core
from vitcompact.operators.pairing import CopyCosts, Parents, attention_maps, shortlist
from vitcompact.operators.replay import build_layer
from vitcompact.operators.statistics import Split
from vitcompact.plan.schema import FactorizeSpec, HallucinateSpec, LayerPlan, Plan
from vitcompact.plan.selection import Selection
from vitcompact.surgery.capture import SiteInput
from vitcompact.surgery.stream import Streams

HELD_OUT_SHARE = 0.125
PAIRING_IMAGES = (32, 128)
"""Heads are paired on a quarter of the images, within these bounds: a choice among few needs fewer than solving."""
PAIRING_CANDIDATES = 4
PAIRING_RIDGE = 1e-2

Init = Literal["lstsq", "svd"]
Hallucinate = Literal["refit", "copy"]


@dataclass(frozen=True)
class Method:
    """How values are found: least squares and the data-optimal truncation, or the naive ways kept for comparison."""

    init: Init = "lstsq"
    hallucinate: Hallucinate = "refit"


def held_out(batch_size: int) -> int:
    """Images at the end of a batch that no fit sees; choices are made on them."""
    return round(batch_size * HELD_OUT_SHARE)


def solve_attention(
    streams: Streams,
    site: AttentionSite,
    count: int,
    selection: Selection,
    method: Method,
    given: HallucinateSpec | None,
) -> tuple[LayerPlan, float]:
    """Hallucinate `count` heads of a site in place.

    Returns:
        its plan, and the held-out error of its output relative to the original's (nan where nothing was fitted).
    """
    core = whole_core(streams.work, site)
    spec = given
    if spec is None and method.hallucinate == "copy":
        spec = make_spec(core.num_heads, _most_alike(streams, site, core, count))
    elif spec is None:
        terms, filter_rank = core.allowed_terms(selection.terms), core.allowed_filter(selection.filter_rank)
        spec = make_spec(core.num_heads, _pair(streams, site, core, count), terms, filter_rank)
    layer = LayerPlan(site.name, "attention", (spec,))
    build_layer(streams.work, site, layer, Plan((layer,), form="folded"))
    if method.hallucinate == "copy":
        return layer, float("nan")
    new = streams.work.get_submodule(site.name)
    assert isinstance(new, CompactAttention)
    terms = tuple(term for term, on in (("identity", spec.identity), ("mean", spec.mean)) if on)
    split = Split.empty(site.name)
    for got, target in streams.inputs(site, site.name):
        phi = attention_fit.features(new, new.inputs(*got.args, **got.kwargs), terms)
        split.add(phi, target, _held_out_rows(got, phi))
    copied = torch.cat((new.proj.weight.T, new.proj.bias[None])).double()
    fitted = attention_fit.fit(split, new.attn_dim, terms, prior=copied)
    fitted.load_into(new)
    return layer, fitted.error


def solve_ffn(streams: Streams, site: FfnSite, rank: int, branches: int, method: Method) -> tuple[LayerPlan, float]:
    """Factorize the output matrix of a site in place; returns as `solve_attention` does."""
    weight, bias = scaled(output_scale(streams.work, site.scale), *matrix(streams.work.get_submodule(site.output)))
    error = float("nan")
    if method.init == "svd":
        factors = plain_svd(weight, bias, rank)
    else:
        split = Split.empty(site.name)
        for got, target in streams.inputs(site, site.output):
            outputs = got.x.movedim(site.channel_dim, -1) @ weight.T.to(got.x.dtype)
            split.add(outputs, target, _held_out_rows(got, outputs))
        fitted = ffn_fit.fit(split, weight, bias, rank)
        factors, error = fitted.factors, fitted.error
    layer = LayerPlan(site.name, "ffn", (FactorizeSpec(rank, branches),))
    build_layer(streams.work, site, layer, Plan((layer,), form="folded"))
    factor = streams.work.get_submodule(site.output)
    assert isinstance(factor, FactorizedLinear)
    factors.load_into(factor)
    return layer, error


def _pairing_images(streams: Streams) -> int:
    low, high = PAIRING_IMAGES
    return min(max(streams.num_images // 4, low), high)


def _pair(streams: Streams, site: AttentionSite, core: CompactAttention, count: int) -> Parents:
    """Kept heads and parents: a shortlist by copy cost, then the one of least held-out error after a refit."""
    costs = CopyCosts(core.num_heads, core.v_dim)
    for got, _ in streams.inputs(site, site.name, _pairing_images(streams)):
        inputs = core.inputs(*got.args, **got.kwargs)
        q, k, v = core.project(inputs)
        maps = attention_maps(core, q, k, inputs)
        costs.add(maps, _per_head(v, core))
    candidates = shortlist(costs.matrix(core.proj.weight), count, PAIRING_CANDIDATES)
    if len(candidates) == 1 or not isinstance(core.inner_norm, nn.Identity):
        return candidates[0]
    return _best_after_refit(streams, site, core, candidates)


def _best_after_refit(
    streams: Streams, site: AttentionSite, core: CompactAttention, candidates: list[Parents]
) -> Parents:
    own = [(head, head) for head in range(core.num_heads)]
    pairs = list(dict.fromkeys([*own, *(pair for parents in candidates for pair in parents.items())]))
    heads, parents = (torch.tensor(side) for side in zip(*pairs, strict=True))
    split = Split.empty(site.name)
    for got, target in streams.inputs(site, site.name, _pairing_images(streams)):
        inputs = core.inputs(*got.args, **got.kwargs)
        q, k, v = core.project(inputs)
        maps = attention_maps(core, q, k, inputs)
        values = _per_head(v, core)
        outputs = torch.stack([maps[:, p] @ values[:, h] for h, p in zip(heads, parents, strict=True)], dim=2)
        if core.gate is not None:
            gate = core.gate(inputs.x).sigmoid().unflatten(-1, (core.num_heads, core.v_dim))
            outputs = outputs * gate[:, :, heads]
        phi = core.call.restore(outputs.flatten(2), inputs)
        split.add(phi, target, _held_out_rows(got, phi))
    outputs_dim = core.proj.out_features

    def error(choice: Parents) -> float:
        index = [pairs.index((head, choice.get(head, head))) for head in range(core.num_heads)]
        columns = torch.cat([torch.arange(i * core.v_dim, (i + 1) * core.v_dim) for i in index])
        fit = split.fit.outputs(outputs_dim, 2 * outputs_dim).select(columns)
        judge = split.judge.outputs(outputs_dim, 2 * outputs_dim).select(columns)
        return judge.error(fit.solve(PAIRING_RIDGE))

    return min(candidates, key=error)


def _most_alike(streams: Streams, site: AttentionSite, core: CompactAttention, count: int) -> Parents:
    """Parents by likeness of the attention maps alone: the naive criterion."""
    similarity = MapSimilarity(core.num_heads)
    for got, _ in streams.inputs(site, site.name, _pairing_images(streams)):
        inputs = core.inputs(*got.args, **got.kwargs)
        q, k, _ = core.project(inputs)
        similarity.add(attention_maps(core, q, k, inputs))
    return shortlist(1.0 - similarity.cosine, count, 1)[0]


def _held_out_rows(got: SiteInput, rows: Tensor) -> int:
    """Entries of the leading axis of `rows` that belong to the held-out images (windows of an image lie together)."""
    return held_out(got.num_images) * (rows.shape[0] // got.num_images)


def _per_head(v: Tensor, core: CompactAttention) -> Tensor:
    return v.unflatten(-1, (core.num_heads, core.v_dim)).transpose(1, 2)
