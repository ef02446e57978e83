"""Expected harm of every size that a site could have, from one walk over the original stream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitcompact.calibration.least_squares import LeastSquares, Split
from vitcompact.calibration.streams import Streams, held_out_rows
from vitcompact.layers.attention import CompactAttention
from vitcompact.layers.pointwise import matrix
from vitcompact.models import AttentionSite, FfnSite
from vitcompact.models.layer_scale import output_scale, scaled
from vitcompact.operators import attention_fit, thin
from vitcompact.operators.hallucinate import make_spec, whole_core
from vitcompact.operators.neurons import removal_order
from vitcompact.operators.pair_heads import copy_costs, head_outputs, with_maps
from vitcompact.operators.pairing import shortlist
from vitcompact.operators.site_statistics import ffn_statistics, head_covariance, qk_moments
from vitcompact.operators.sizes import attention_sizes, ffn_sizes
from vitcompact.plan.specs import HallucinateSpec

CURVE_IMAGES = 64
"""Images on which attention is run again for every size of its queries and keys."""
CURVE_RIDGE = 1e-3


@dataclass(frozen=True)
class AttentionCurve:
    """Expected harm by width of queries and keys, by width of values, and of hallucinating (spec and harm)."""

    qk: dict[int, float] = field(default_factory=dict)
    v: dict[int, float] = field(default_factory=dict)
    hallucinate: tuple[tuple[HallucinateSpec, float], ...] = ()


@dataclass(frozen=True)
class FfnCurve:
    """Expected harm by number of hidden units, and by rank."""

    hidden: dict[int, float] = field(default_factory=dict)
    rank: dict[int, float] = field(default_factory=dict)


def attention_curve(streams: Streams, site: AttentionSite, ops: Iterable[str]) -> AttentionCurve:
    """Harm of narrower and of hallucinated heads, `proj` solved again for each; held-out images where there are any."""
    core = whole_core(streams.original, site)
    root = streams.root(site)
    copies, qk, v = attention_sizes(core, ops)
    return AttentionCurve(
        qk=_qk_curve(streams, site, core, root, qk) if qk else {},
        v=_v_curve(streams, site, core, root, v) if v else {},
        hallucinate=_hallucinate_curve(streams, site, core, root, copies) if copies else (),
    )


def _qk_curve(
    streams: Streams, site: AttentionSite, core: CompactAttention, root: Tensor | None, widths: list[int]
) -> dict[int, float]:
    query, key, _ = qk_moments(streams, site, core).subspaces()
    splits = {width: Split.empty(site.name) for width in widths}
    for got, target in streams.inputs(site, site.name, CURVE_IMAGES):
        inputs = core.inputs(*got.args, **got.kwargs)
        q, k, v = core.project(inputs)
        for width, split in splits.items():
            thin_q, thin_k = (t @ basis[..., :width].to(t.dtype) for t, basis in ((q, query), (k, key)))
            phi = core.inner_norm(core.attend(thin_q, thin_k, v, inputs))
            if core.gate is not None:
                phi = phi * core.gate(inputs.x).sigmoid()
            phi = core.call.restore(phi, inputs)
            split.add(phi, _weighted(target, root), held_out_rows(got, phi), got.weights)
    prior = _prior(core, root)
    return {width: _harm(streams, site, split, prior) for width, split in splits.items()}


def _v_curve(
    streams: Streams, site: AttentionSite, core: CompactAttention, root: Tensor | None, widths: list[int]
) -> dict[int, float]:
    covariance = head_covariance(streams, site, core)
    bases, _ = thin.value_bases(covariance, core.proj.weight, root)
    split = Split.empty(site.name)
    for got, target in streams.inputs(site, site.name):
        phi = attention_fit.features(core, core.inputs(*got.args, **got.kwargs), ())
        split.add(phi, _weighted(target, root), held_out_rows(got, phi), got.weights)

    def harm(width: int) -> float:
        narrow = torch.block_diag(*bases[..., :width])
        return _harm(streams, site, split.derive(lambda problem: problem.map(narrow)), None)

    return {width: harm(width) for width in widths}


def _hallucinate_curve(
    streams: Streams, site: AttentionSite, core: CompactAttention, root: Tensor | None, counts: list[int]
) -> tuple[tuple[HallucinateSpec, float], ...]:
    """So many of the heads, each from its cheapest parent, with the identity path where it can be."""
    terms = core.allowed_terms(("identity",))
    costs = copy_costs(streams, site, core)
    choices = {count: shortlist(costs, count, 1)[0] for count in counts}
    splits = {count: Split.empty(site.name) for count in counts}
    for got, target, inputs, maps in with_maps(streams, site, core, CURVE_IMAGES):
        own = attention_fit.features(core, inputs, terms)[..., core.attn_dim :]
        both = torch.cat([_weighted(target, root)] * 2, dim=-1)
        for count, parents in choices.items():
            pairs = [(head, parents.get(head, head)) for head in range(core.num_heads)]
            phi = torch.cat((head_outputs(core, inputs, maps, pairs), own), dim=-1)
            splits[count].add(phi, both, held_out_rows(got, phi), got.weights)
    prior, found = _prior(core, root), []
    for count, parents in choices.items():
        fitted = attention_fit.fit(splits[count], core.attn_dim, terms, prior)
        harm = _total(streams, site, fitted.error * _energy(splits[count].judge) / 2)
        found.append((make_spec(core.num_heads, parents, terms), harm))
    return tuple(found)


def ffn_curve(streams: Streams, site: FfnSite, ops: Iterable[str]) -> FfnCurve:
    """Harm of fewer hidden units (the rest solved again) and of lower rank."""
    weight, _ = scaled(output_scale(streams.original, site.scale), *matrix(streams.original.get_submodule(site.output)))
    root = streams.root(site)
    sizes, ranks = ffn_sizes(streams.original, site, ops)
    hidden: dict[int, float] = {}
    if sizes:
        split = ffn_statistics(streams, site)
        removal = removal_order(split.fit, weight, root, min(sizes), sizes, split.judge)
        hidden = {size: _total(streams, site, error) for size, error in removal.error.items()}
        split = split.derive(lambda problem: problem.map(weight.T))
    else:
        split = ffn_statistics(streams, site, weight)
    if not ranks:
        return FfnCurve(hidden)
    lost = _truncation_errors(split, root)
    return FfnCurve(hidden, {rank: _total(streams, site, float(lost[rank])) for rank in ranks})


def _truncation_errors(split: Split, root: Tensor | None) -> Tensor:
    """Mean squared error of every rank `(outputs + 1,)`: directions of the fitting rows, energy of the judging ones."""
    seen, judged = (problem.centred()[0] for problem in (split.fit, split.judge))
    if root is not None:
        seen, judged = root @ seen @ root, root @ judged @ root
    vectors = torch.linalg.eigh(seen).eigenvectors.flip(1)
    energy = (vectors * (judged @ vectors)).sum(0)
    return energy.sum() - torch.cat((energy.new_zeros(1), energy.cumsum(0)))


def _prior(core: CompactAttention, root: Tensor | None) -> Tensor:
    solution = torch.cat((core.proj.weight.T, core.proj.bias[None])).double()
    return solution if root is None else solution @ root


def _weighted(target: Tensor, root: Tensor | None) -> Tensor:
    plain = target[..., : target.shape[-1] // 2]
    return plain if root is None else plain @ root.to(plain.dtype)


def _harm(streams: Streams, site: AttentionSite, split: Split, prior: Tensor | None) -> float:
    """Held-out squared error of a site after solving `proj` again, as harm to the model's output."""
    error = split.judge.error(split.fit.solve(CURVE_RIDGE, prior))
    return _total(streams, site, error * _energy(split.judge))


def _energy(statistics: LeastSquares) -> float:
    """Mean squared target per token."""
    return float(statistics.energy.sum() / statistics.gram[-1, -1])


def _total(streams: Streams, site: AttentionSite | FfnSite, mean_squared_error: float) -> float:
    """Harm of an error, given its mean per token (weighted by the channels' metric)."""
    return mean_squared_error * streams.harm_scale(site)
