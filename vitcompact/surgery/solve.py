"""Solving one site from the streams: structure first, then values, block by block."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from vitcompact.calibration.capture import Site as Site
from vitcompact.calibration.least_squares import Split
from vitcompact.calibration.streams import Streams, held_out_rows
from vitcompact.errors import UsageError
from vitcompact.layers.attention import CompactAttention
from vitcompact.layers.factor import FactorizedLinear
from vitcompact.layers.pointwise import matrix
from vitcompact.models import AttentionSite, FfnSite
from vitcompact.models.layer_scale import output_scale, scaled
from vitcompact.models.plain_vit import no_patch_grid
from vitcompact.operators import attention_fit, ffn_fit, neurons, thin
from vitcompact.operators.factorize import Factors, plain_svd
from vitcompact.operators.hallucinate import core_of, make_spec, whole_core
from vitcompact.operators.pair_heads import most_alike, pair_heads, pairing_images
from vitcompact.operators.refit import refit
from vitcompact.operators.replay import build_layer
from vitcompact.operators.share_qk import GroupMoments
from vitcompact.operators.site_statistics import ffn_statistics, head_covariance, qk_moments
from vitcompact.options.surgery import INGREDIENTS, OLDER_NAMES, Hallucinate, Init
from vitcompact.plan.schema import LayerPlan, Plan
from vitcompact.plan.specs import FactorizeSpec, HallucinateSpec, NeuronsSpec, OperatorSpec, ThinQkSpec, ThinVoSpec
from vitcompact.planning.selection import Selection
from vitcompact.surgery.reconstruct import NO_STEPS, ReconstructOptions

SHARED_WEIGHT = 0.5
"""Weight of the kept head's logits in those of its group."""


@dataclass(frozen=True)
class Method:
    """How values are found: least squares and the data-optimal truncation, or the naive ways kept for comparison.

    `propagated_error` lets targets take back what the residual stream has drifted; `sensitivity` lets a budget
    weigh errors by what they do to the model's output (weighing the fits themselves by it was measured and did not
    help); `shared_maps` solves a kept head's queries and keys for its children as well.
    """

    init: Init = "lstsq"
    hallucinate: Hallucinate = "refit"
    sensitivity: bool = True
    propagated_error: bool = True
    shared_maps: bool = True
    reconstruct: ReconstructOptions = NO_STEPS

    def without(self, names: Iterable[str]) -> Method:
        """The same method with some ingredients switched off.

        Raises:
            UsageError: there is no such ingredient.
        """
        names = [OLDER_NAMES.get(name, name) for name in names]
        unknown = sorted(set(names) - set(INGREDIENTS))
        if unknown:
            raise UsageError(f"`without` takes {', '.join(INGREDIENTS)}; got {unknown[0]!r}")
        return replace(self, **dict.fromkeys(names, False))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Draft:
    """What a layer is to become: its operators, and how many heads to hallucinate if the pairs are still to be found.

    An attention layer without either keeps its structure and has its output projection solved again.
    """

    operators: tuple[OperatorSpec, ...] = ()
    num_hallucinated: int = 0


@dataclass(frozen=True)
class Solved:
    """A layer's plan, and the held-out error of its output relative to the original's (nan: nothing was fitted).

    `rows_per_unknown`: tokens that the solution was fitted to, over the unknowns for each output.
    """

    layer: LayerPlan
    error: float = float("nan")
    rows_per_unknown: float = float("inf")


def solve_attention(
    streams: Streams, site: AttentionSite, draft: Draft, selection: Selection, method: Method
) -> Solved:
    """Give an attention site in the converted stream its structure and values, in place."""
    layer = LayerPlan(site.name, "attention", draft.operators)
    if draft.num_hallucinated:
        layer = LayerPlan(site.name, "attention", (_pairs(streams, site, draft, selection, method),))
    spec = layer.find(HallucinateSpec)
    whole = whole_core(streams.work, site) if spec is not None else None
    if spec is not None:
        build_layer(streams.work, site, LayerPlan(site.name, "attention", (spec,)), Plan((), form="folded"))
    core = core_of(streams.work, site)
    if method.hallucinate == "copy":
        return Solved(layer)
    if whole is not None and core.fixed_qk_dim is None and method.shared_maps:
        _share_maps(streams, site, core, whole)
    if (narrow := layer.find(ThinQkSpec)) is not None and narrow.qk_dim < core.qk_dim:
        query, key, _ = qk_moments(streams, site, core).subspaces()
        thin.set_qk(core, query, key, narrow.qk_dim)
    if (thinner := layer.find(ThinVoSpec)) is not None and thinner.v_dim < core.v_dim:
        covariance = head_covariance(streams, site, core)
        basis, _ = thin.value_bases(covariance, core.proj.weight)
        thin.set_vo(core, basis[..., : thinner.v_dim], covariance)
    error, rows = refit(streams, site, core)
    if spec is not None and spec.conv and core.conv is None:
        operators = (replace(s, conv=False) if s is spec else s for s in layer.operators)
        layer = replace(layer, operators=tuple(operators))
    return Solved(layer, error, rows / core.attn_dim)


def _share_maps(streams: Streams, site: AttentionSite, core: CompactAttention, whole: CompactAttention) -> None:
    """Solve queries and keys of every group for the children too, where held-out images say that it helps."""
    moments = GroupMoments(core, SHARED_WEIGHT, site.name)
    for got, _ in streams.inputs(site, site.name, pairing_images(streams)):
        q, k, _ = whole.project(whole.inputs(*got.args, **got.kwargs))
        moments.add(q, k)
    shared = copy.deepcopy(core)
    moments.solve(shared, whole)
    candidates = (core, shared)
    terms = core.solved_terms
    splits = [Split.empty(site.name) for _ in candidates]
    for got, target in streams.inputs(site, site.name, pairing_images(streams)):
        for candidate, split in zip(candidates, splits, strict=True):
            phi = attention_fit.features(candidate, candidate.inputs(*got.args, **got.kwargs), terms)
            split.add(phi, target, held_out_rows(got, phi))
    prior = torch.cat((core.proj.weight.T, core.proj.bias[None])).double()
    own, other = (attention_fit.fit(split, core.attn_dim, terms, prior).error for split in splits)
    if other < own:
        core.load_state_dict(shared.state_dict())


def _pairs(
    streams: Streams, site: AttentionSite, draft: Draft, selection: Selection, method: Method
) -> HallucinateSpec:
    core = whole_core(streams.work, site)
    if method.hallucinate == "copy":
        return make_spec(core.num_heads, most_alike(streams, site, core, draft.num_hallucinated))
    parents = pair_heads(streams, site, core, draft.num_hallucinated)
    terms, filter_rank = core.allowed_terms(selection.terms), core.allowed_filter(selection.filter_rank)
    if no_patch_grid(streams.work) is not None:
        terms = tuple(term for term in terms if term != "conv")
    return make_spec(core.num_heads, parents, terms, filter_rank)


def solve_ffn(streams: Streams, site: FfnSite, draft: Draft, method: Method) -> Solved:
    """Give an FFN site in the converted stream its structure and values, in place."""
    weight, bias = scaled(output_scale(streams.work, site.scale), *matrix(streams.work.get_submodule(site.output)))
    layer = LayerPlan(site.name, "ffn", draft.operators)
    spec, fewer = layer.find(FactorizeSpec), layer.find(NeuronsSpec)
    if method.init == "svd" and spec is not None and fewer is None:
        factorize(streams.work, site, spec, plain_svd(weight, bias, spec.rank))
        return Solved(layer)
    if fewer is None and spec is not None:
        split = ffn_statistics(streams, site, weight)
        rows_per_unknown = _rows_per_unknown(split)
    else:
        hidden = weight.shape[1] if fewer is None else fewer.hidden
        fitted = neurons.fit(ffn_statistics(streams, site), weight, bias, hidden)
        fitted.load_into(streams.work, site)
        rows_per_unknown = _rows_per_unknown(fitted.split)
        if spec is None:
            return Solved(layer, fitted.error, rows_per_unknown)
        weight, bias = fitted.weight, fitted.bias
        split = fitted.split.derive(lambda problem: problem.map(weight.T))
    found = ffn_fit.fit(split, weight, bias, spec.rank)
    factorize(streams.work, site, spec, found.factors)
    return Solved(layer, found.error, rows_per_unknown)


def _rows_per_unknown(split: Split) -> float:
    return split.fit.rows / max(split.fit.num_features, 1)


def factorize(model: nn.Module, site: FfnSite, spec: FactorizeSpec, factors: Factors) -> None:
    """Put a solved pair of factors into the place of an FFN's output matrix."""
    build_layer(model, site, LayerPlan(site.name, "ffn", (spec,)), Plan((), form="folded"))
    factor = model.get_submodule(site.output)
    assert isinstance(factor, FactorizedLinear)
    factors.load_into(factor)
