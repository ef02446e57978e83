"""Hallucinated heads (hMHSA): heads without queries and keys, whose attention map is made from a kept head's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from vitcompact.calibration.least_squares import Split
from vitcompact.calibration.similarity import weight_similarity
from vitcompact.calibration.ties import lower
from vitcompact.errors import UsageError
from vitcompact.layers.attention import CompactAttention, HeadLayout
from vitcompact.layers.no_projection import NoProjection
from vitcompact.models import AttentionSite, Site
from vitcompact.models.cores import build_core, grid_size_of, parts_of, whole_core
from vitcompact.models.layer_scale import output_scale, remove_scale
from vitcompact.models.plain_vit import no_patch_grid
from vitcompact.models.site_cost import Sizes
from vitcompact.operators import attention_fit
from vitcompact.operators.base import Candidate, Operator, Request
from vitcompact.operators.pair_heads import copy_costs, most_alike, pair_heads, pairing_images, with_maps
from vitcompact.operators.pairing import Parents, num_hallucinated, shortlist
from vitcompact.operators.share_qk import GroupMoments
from vitcompact.operators.sites import SiteLosses, SolvedAttention, SolvedSite, energy, in_metric
from vitcompact.options.surgery import TERMS
from vitcompact.plans.schema import Form, LayerPlan
from vitcompact.plans.specs import LayerKind, OperatorSpec, exactly
from vitcompact.plans.typed import known

CURVE_IMAGES = 64
"""Images on which attention is run again for every candidate."""
SHARED_WEIGHT = 0.5
"""Weight of the kept head's logits in those of its group."""


@dataclass(frozen=True)
class HallucinatedHead:
    """One head whose attention map is made from the maps of its `parents` (indices into the original heads)."""

    head: int
    parents: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.head}←{'+'.join(map(str, self.parents))}"


@dataclass(frozen=True)
class HallucinateSpec(OperatorSpec):
    """hMHSA of one attention layer: which heads keep Q and K, and what each other head's map is made of.

    `A_g = alpha * A_p + beta * I + gamma * J`, optionally filtered over the token grid (arXiv 2306.10875, section 3.2;
    the three terms are linear in the map and so commute with V).

    Attributes:
        num_heads: heads of the original layer.
        kept: heads that keep their own Q and K, in the order in which the new layer stores them.
        hallucinated: the other heads with their parents, in stored order.
        identity: an identity path (beta) on every value channel.
        mean: a path (gamma) from the mean of V over the keys allowed.
        conv: a 3x3 filter of every head's own values over the token grid.
        filter_rank: rank of the 3x3 map filter, 0 for none.
    """

    op: ClassVar[str] = "hallucinate"
    kind: ClassVar[LayerKind] = "attention"
    num_heads: int
    kept: tuple[int, ...]
    hallucinated: tuple[HallucinatedHead, ...]
    identity: bool = False
    mean: bool = False
    conv: bool = False
    filter_rank: int = 0

    def __post_init__(self) -> None:
        heads = sorted([*self.kept, *(h.head for h in self.hallucinated)])
        if len(heads) != self.num_heads or heads != list(range(len(heads))) or not self.kept:
            raise UsageError(
                f"hallucinate: kept and hallucinated heads must be 0..{self.num_heads - 1} once each, got {heads}"
            )
        for child in self.hallucinated:
            if len(child.parents) != 1 or child.parents[0] not in self.kept:
                raise UsageError(
                    f"hallucinate: head {child.head} needs one kept head as its parent, got {list(child.parents)}"
                )
        if not 0 <= self.filter_rank <= 3:
            raise UsageError(f"hallucinate: filter_rank must be 0 to 3, got {self.filter_rank}")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> HallucinateSpec:
        """See `OperatorSpec.from_json`."""
        cls.refuse_unknown(data)
        for entry in data["hallucinated"]:
            known(entry, "hallucinated head", ("head", "parents"))

        def numbers(values: Any, what: str) -> tuple[int, ...]:
            return tuple(exactly(value, int, f"hallucinate: {what}") for value in values)

        heads = tuple(
            HallucinatedHead(exactly(h["head"], int, "hallucinate: head"), numbers(h["parents"], "parents"))
            for h in data["hallucinated"]
        )
        flags = {name: exactly(data.get(name, False), bool, f"hallucinate: {name}") for name in TERMS}
        return cls(
            num_heads=exactly(data["num_heads"], int, "hallucinate: num_heads"),
            kept=numbers(data["kept"], "kept"),
            hallucinated=heads,
            **flags,
            filter_rank=exactly(data.get("filter_rank", 0), int, "hallucinate: filter_rank"),
        )


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


def parents_in(layer: LayerPlan | None) -> Parents:
    """Who is whose parent in a planned layer; nobody's where it keeps all of its maps."""
    spec = None if layer is None else layer.find(HallucinateSpec)
    return {} if spec is None else {child.head: child.parents[0] for child in spec.hallucinated}


def layout_of(spec: HallucinateSpec) -> HeadLayout:
    """Where each head of `spec` is stored."""
    children = tuple(tuple(c.head for c in spec.hallucinated if c.parents[0] == head) for head in spec.kept)
    return HeadLayout(spec.kept, children)


class Hallucinate(Operator[HallucinateSpec]):
    """Makes some heads hallucinate their map; chosen by output error, solved by least squares."""

    spec = HallucinateSpec
    title = "hallucinated heads"
    description = "attention maps of some heads are made from those of kept heads (hMHSA)"
    source = "arXiv 2306.10875, section 3.2"

    def label(self, spec: HallucinateSpec) -> str:
        """Such as `2 of 6 heads: 1←0 4←2`."""
        pairs = " ".join(map(str, spec.hallucinated))
        return f"{len(spec.hallucinated)} of {spec.num_heads} heads: {pairs}"

    def short_label(self, spec: HallucinateSpec) -> str:
        """Such as `2 of 6`."""
        return f"{len(spec.hallucinated)} of {spec.num_heads}"

    def build(self, model: nn.Module, site: Site, spec: HallucinateSpec, form: Form) -> CompactAttention:
        """See `Operator.build`; a LayerScale after the layer is absorbed into `proj`."""
        assert isinstance(site, AttentionSite)
        if spec.conv and (reason := no_patch_grid(model)) is not None:
            raise UsageError(f"{site.name}: no conv path can be built: {reason}")
        parts = parts_of(model, site)
        if spec.num_heads != parts.num_heads:
            raise UsageError(
                f"the plan expects {spec.num_heads} heads in {site.name!r}, the model has {parts.num_heads}"
            )
        core = build_core(
            parts,
            layout_of(spec),
            alpha=form == "training",
            identity=spec.identity,
            mean=spec.mean,
            conv=spec.conv,
            filter_rank=spec.filter_rank,
            num_prefix_tokens=int(getattr(model, "num_prefix_tokens", 0)),
            grid_size=grid_size_of(model),
            scale=output_scale(model, site.scale),
        )
        model.set_submodule(site.name, core)
        remove_scale(model, site.scale)
        return core

    def grow(self, module: nn.Module, spec: HallucinateSpec) -> None:
        """See `Operator.grow`: an explicit alpha."""
        assert isinstance(module, CompactAttention)
        module.grow()

    def current(self, module: nn.Module, spec: HallucinateSpec) -> HallucinateSpec:
        """See `Operator.current`: paths whose coefficients are all zero are gone."""
        assert isinstance(module, CompactAttention)
        paths = module.paths
        return replace(spec, identity=paths["identity"], mean=paths["mean"], conv=paths["conv"])

    def sizes(self, model: nn.Module, site: Site) -> list[int]:
        """Numbers of heads to hallucinate: a quarter and half of them."""
        assert isinstance(site, AttentionSite)
        core = whole_core(model, site)
        if not isinstance(core.inner_norm, nn.Identity):  # paths are not additive behind a norm
            return []
        if isinstance(core.proj, NoProjection):  # losses are predicted for a projection that is solved
            return []
        return sorted({max(1, core.num_heads // 4), core.num_heads // 2})

    def size_of(self, spec: HallucinateSpec) -> int:
        """Hallucinated heads."""
        return len(spec.hallucinated)

    def offers(self, model: nn.Module, site: Site, spec: HallucinateSpec) -> bool:
        """See `Operator.offers`: of all heads of the layer, with the identity path where it can be."""
        assert isinstance(site, AttentionSite)
        core = whole_core(model, site)
        parents = {child.head: child.parents[0] for child in spec.hallucinated}
        return spec == make_spec(core.num_heads, parents, core.allowed_terms(("identity",)))

    def resized(self, size: int, sizes: Sizes) -> Sizes:
        """So many maps fewer."""
        return {**sizes, "maps": sizes["maps"] - size}

    def losses(self, layer: SiteLosses, sizes: list[int]) -> list[Candidate]:
        """So many of the heads, each from its cheapest parent, with the identity path where it can be."""
        assert isinstance(layer.site, AttentionSite)
        streams, site, core = layer.streams, layer.site, layer.core
        terms = core.allowed_terms(("identity",))
        costs = copy_costs(streams, site, core)
        choices = {count: shortlist(costs, count, 1)[0] for count in sizes}
        splits = {count: Split.empty(site.name) for count in sizes}
        for got, target, mapped in with_maps(streams, site, core, CURVE_IMAGES, [*splits.values()]):
            paths = [attention_fit.path_features(core, mapped.inputs, mapped.v, terms)] if terms else []
            both = torch.cat([layer.weighted(target)] * 2, dim=-1)
            for count, parents in choices.items():
                pairs = [(head, parents.get(head, head)) for head in range(core.num_heads)]
                phi = torch.cat((mapped.outputs(pairs), *paths), dim=-1)
                splits[count].add(phi, both, got.parts, got.weights)
        prior, found = layer.prior(), []
        for count, parents in choices.items():
            fitted = attention_fit.fit(splits[count], core.attn_dim, terms, prior)
            loss = layer.loss(fitted.error * energy(splits[count].judge) / 2)
            found.append(Candidate(make_spec(core.num_heads, parents, terms), loss))
        return found

    def timed_as(self, spec: HallucinateSpec) -> HallucinateSpec:
        """See `Operator.timed_as`: who is whose parent plays no part, only how many children there are."""
        place = {head: i for i, head in enumerate(spec.kept)}
        parents = {len(spec.kept) + i: place[child.parents[0]] for i, child in enumerate(spec.hallucinated)}
        terms = tuple(term for term in TERMS if getattr(spec, term))
        return make_spec(spec.num_heads, parents, terms, spec.filter_rank)

    def requested(self, model: nn.Module, site: Site, request: Request) -> int | str:
        """See `Operator.requested`: `floor(ratio * heads)`."""
        assert isinstance(site, AttentionSite)
        heads = parts_of(model, site).num_heads
        return (
            num_hallucinated(request.ratio, heads) or f"ratio {request.ratio:g} of {heads} heads is less than one head"
        )

    def choose(self, layer: SolvedSite, size: int, request: Request) -> HallucinateSpec:
        """See `Operator.choose`: by output error after a refit, or by likeness where that is asked for."""
        assert isinstance(layer.site, AttentionSite)
        streams, site = layer.streams, layer.site
        core = whole_core(streams.work, site)
        if layer.solver.hallucinate == "copy":
            return make_spec(core.num_heads, most_alike(streams, site, core, size))
        parents = pair_heads(streams, site, core, size)
        terms, filter_rank = core.allowed_terms(request.terms), core.allowed_filter(request.filter_rank)
        if no_patch_grid(streams.work) is not None:
            terms = tuple(term for term in terms if term != "conv")
        return make_spec(core.num_heads, parents, terms, filter_rank)

    def solve(self, layer: SolvedSite, spec: HallucinateSpec) -> None:
        """See `Operator.solve`; the kept heads' queries and keys are solved for their children too where that helps."""
        assert isinstance(layer, SolvedAttention)
        whole = whole_core(layer.streams.work, layer.site)
        core = self.build(layer.streams.work, layer.site, spec, "folded")
        layer.naive = layer.solver.hallucinate == "copy"
        if not layer.naive and core.fixed_qk_dim is None and layer.solver.shared_maps:
            _share_maps(layer, core, whole)

    def choose_from_weights(self, model: nn.Module, site: Site, size: int, request: Request) -> HallucinateSpec:
        """See `Operator.choose_from_weights`: by the likeness of the heads' bilinear forms, by rule without weights."""
        assert isinstance(site, AttentionSite)
        parts = parts_of(model, site)
        costs = 1.0 - weight_similarity(parts)
        costs = torch.zeros_like(costs, device="cpu") if costs.is_meta else costs
        return make_spec(parts.num_heads, shortlist(costs, size, 1)[0])

    def solve_from_weights(self, model: nn.Module, site: Site, spec: HallucinateSpec) -> None:
        """See `Operator.solve_from_weights`: copied heads."""
        self.build(model, site, spec, "folded")


def _share_maps(layer: SolvedAttention, core: CompactAttention, whole: CompactAttention) -> None:
    """Solve queries and keys of every group for the children too, where held-out images say that it helps."""
    streams, site = layer.streams, layer.site
    moments = GroupMoments(core, SHARED_WEIGHT, site.name)
    for got, _ in streams.inputs(site, site.name, pairing_images(streams), [moments]):
        q, k, _ = whole.project(whole.inputs(*got.args, **got.kwargs))
        moments.add(q, k)
    shared = copy.deepcopy(core)
    moments.solve(shared, whole)
    candidates = (core, shared)
    terms = core.solved_terms
    splits, root = [Split.empty(site.name) for _ in candidates], streams.root(site)
    for got, target in streams.inputs(site, site.name, pairing_images(streams), splits):
        for candidate, split in zip(candidates, splits, strict=True):
            phi = attention_fit.features(candidate, candidate.inputs(*got.args, **got.kwargs), terms)
            split.add(phi, in_metric(target, root), got.parts)
    prior = in_metric(attention_fit.solution_of(core), root)
    own, other = (attention_fit.fit(split, core.attn_dim, terms, prior).error for split in splits)
    if lower(other, than=own):
        core.load_state_dict(shared.state_dict())
