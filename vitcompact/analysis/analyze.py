"""Analyze a model: head similarity, FFN spectrum, cost now and as `convert` would leave it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vitcompact.analysis.pictures import merging_copy, pictures_of
from vitcompact.analysis.report import AnalysisReport, FfnReport, HeadPair, LayerReport
from vitcompact.analysis.savings import savings
from vitcompact.analysis.watch import AttentionWatch, FfnWatch, watching
from vitcompact.calibration.output_sensitivity import OutputSensitivity
from vitcompact.calibration.similarity import weight_similarity
from vitcompact.data import (
    ImageBatches,
    check_model,
    has_no_weights,
    images_for,
    open_model,
    processes_of,
    resolve_input,
)
from vitcompact.errors import VitCompactError
from vitcompact.layers.pointwise import matrix
from vitcompact.models import AttentionSite, FfnSite, Site, family_named
from vitcompact.models.cost import Cost, count, meta_copy
from vitcompact.models.layer_scale import output_scale, scaled
from vitcompact.operators import OPERATORS
from vitcompact.operators.factorize import rank_in
from vitcompact.operators.factors import spectrum
from vitcompact.operators.hallucinate import make_spec, parents_in
from vitcompact.operators.merge import given_schedule
from vitcompact.operators.pairing import Parents, shortlist
from vitcompact.operators.replay import replay
from vitcompact.options.selection import Allocation, Keep, MergeTokens, Only
from vitcompact.options.shared import AmpDType, Backend
from vitcompact.planning.allocation import check_allocation, plan_shares
from vitcompact.planning.budget_report import budget_json
from vitcompact.planning.curves import Curves
from vitcompact.planning.merging import merging_as_given
from vitcompact.planning.planner import plan_for
from vitcompact.planning.request import budget_of, check_budget, check_keep, check_one_clock
from vitcompact.planning.scope import Wanted, check_patterns, wanted_layers
from vitcompact.planning.selection import Selection, patterns
from vitcompact.plans.schema import LayerPlan, Plan
from vitcompact.utils.device import frozen_copy
from vitcompact.utils.progress import Progress, notebooks, silent

STEPS = 32
"""Points of the spectrum of an FFN's output."""


def analyze(
    model: nn.Module,
    images: Tensor | Iterable[Tensor] | ImageBatches | None = None,
    *,
    ratio: float | None = None,
    rank_ratio: float | None = None,
    allocation: Allocation | None = None,
    target_macs: float | None = None,
    target_params: float | None = None,
    target_latency: float | None = None,
    latency_backend: Backend | None = None,
    latency_batch: int | None = None,
    latency_dtype: AmpDType | None = None,
    ops: Iterable[str] | None = None,
    merge_tokens: MergeTokens | None = None,
    keep: Keep | None = None,
    only: Only | None = None,
    protect: Iterable[str] = (),
    size_multiple: int = 8,
    batch_size: int = 32,
    curves: Curves | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = notebooks,
) -> AnalysisReport:
    """Measure what `convert` would have to work with; one forward pass over `images`, maps of one batch at a time.

    With a target or `allocation='global'`, every layer's loss increase curve is measured too, which takes about as long
    as a conversion.

    Args:
        images: normalised images `(n, channels, height, width)` or batches of them; None judges by the weights. A model
            on the meta device has none: cost, plan and what it saves is all there is to say.
        allocation, merge_tokens, keep, size_multiple, curves, and those of `latency_`: as in `convert`.

    Raises:
        NothingToCompactError: no layer of this architecture can be compacted.
        UsageError: bad options, or what is no timm model.
        DataError: images that the model does not take, or that give non-finite activations.
    """
    timed = latency_backend, latency_batch, latency_dtype
    budget = budget_of(target_macs, target_params, target_latency, ops, merge_tokens, keep, *timed)
    check_budget(budget, (ratio, rank_ratio), None, images)
    check_keep(keep, images)
    check_one_clock(budget, images)
    shares = [0.5 if share is None else share for share in (ratio, rank_ratio)]
    selection = Selection(shares[0], shares[1], only, patterns(protect), size_multiple=size_multiple)
    check_allocation(allocation, selection, budget, None, images)
    opened = open_model(model)
    model, images = opened.model, opened.images(images, batch_size)
    check_model(model, weights=budget is not None or images is not None)
    check_patterns(model, selection.protect)
    check_keep(keep, images, model)
    wanted = wanted_layers(model, selection)
    batches = None if images is None else images_for(model, images, batch_size)
    found = planned = known = None
    original = model
    if batches is not None:
        original = frozen_copy(model, device)
        known = OutputSensitivity(original, batches, keep or "both", progress)
    if budget is not None and batches is not None:
        found = plan_for(original, batches, budget, selection=selection, known=known, curves=curves, progress=progress)
        planned = found.plan
    elif allocation == "global" and batches is not None:
        planned = plan_shares(original, batches, selection, curves=curves, keep=keep or "both", progress=progress)
    if planned is not None:
        wanted = _as_planned(model, wanted, planned)
    with torch.no_grad():
        if has_no_weights(model):
            layers, ffn = [], []
        elif batches is None:
            layers = [_from_weights(model, site, amount) for site, amount in wanted.attention]
            ffn = [_matrix_spectrum(model, site, rank) for site, rank in wanted.ffn]
        else:
            layers, ffn = _from_images(model, wanted, batches, planned, device, progress)
    plan = planned or _plan(model, selection, wanted, layers)
    if found is None:
        schedule = given_schedule(model, merge_tokens)
        plan = merging_as_given(plan, original, batches, schedule, known, progress)
    merging = merging_copy(model, plan, known)
    return _reported(model, wanted, layers, ffn, plan, batches, None if found is None else budget_json(found), merging)


def analyze_plan(
    model: nn.Module,
    images: ImageBatches,
    plan: Plan,
    *,
    compacted: nn.Module | None = None,
    budget: dict[str, Any] | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> AnalysisReport:
    """What `analyze` says of a plan that was made already; one forward pass over `images`.

    Args:
        model: the original.
        compacted: what the plan made of it; its attention maps and merged tokens are shown beside the original's.
        budget: what `budget_json` says of the plan, where it has a budget.
    """
    try:
        wanted = _as_planned(model, wanted_layers(model, Selection(0.5, 0.5)), plan)
    except VitCompactError:  # nothing but merging tokens can be done here
        wanted = Wanted((), ())
    with torch.no_grad():
        layers, ffn = _from_images(model, wanted, images, plan, device, progress)
    merging = None
    if compacted is None:
        merging = merging_copy(model, plan, OutputSensitivity(frozen_copy(model, device), images, progress=progress))
    wanted = replace(wanted, skipped=plan.skipped)
    return _reported(model, wanted, layers, ffn, plan, images, budget, merging, compacted)


def _reported(
    model: nn.Module,
    wanted: Wanted,
    layers: list[LayerReport],
    ffn: list[FfnReport],
    plan: Plan,
    images: ImageBatches | None,
    budget: dict[str, Any] | None,
    merging: nn.Module | None,
    compacted: nn.Module | None = None,
) -> AnalysisReport:
    shown = processes_of(images).first
    return AnalysisReport(
        model=str((getattr(model, "pretrained_cfg", None) or {}).get("architecture", type(model).__name__)),
        cost=count(model, resolve_input(model).input_size),
        predicted=predicted_cost(model, plan),
        layers=tuple(layers),
        ffn=tuple(ffn),
        skipped=wanted.skipped,
        num_samples=0 if images is None else images.num_samples,
        budget=budget,
        plan=plan,
        savings=savings(model, plan),
        pictures=pictures_of(model, images, wanted, layers, compacted, merging) if images is not None and shown else {},
    )


def predicted_cost(model: nn.Module, plan: Plan) -> Cost:
    """Cost of the folded model that `plan` leads to, counted on its structure alone."""
    return count(replay(meta_copy(model), plan.folded()), resolve_input(model).input_size, spent=True)


def _as_planned(model: nn.Module, wanted: Wanted, plan: Plan) -> Wanted:
    """The same layers, with each FFN's rank in the plan: all of its outputs where its matrix stays whole."""

    def rank(site: Site) -> int:
        assert isinstance(site, FfnSite)
        return rank_in(plan.layer(site.name)) or matrix(model.get_submodule(site.output))[0].shape[0]

    layers = ((s, asked if s.kind == "attention" else ((asked[0][0], rank(s)),)) for s, asked in wanted.layers)
    return replace(wanted, layers=tuple(layers))


def _from_images(
    model: nn.Module,
    wanted: Wanted,
    batches: ImageBatches,
    planned: Plan | None,
    device: str | torch.device,
    progress: Progress,
) -> tuple[list[LayerReport], list[FfnReport]]:
    watched = frozen_copy(model, device)
    attention, ffn = [site for site, _ in wanted.attention], [site for site, _ in wanted.ffn]
    progress.start("analyzing", len(batches))
    with watching(watched, attention, ffn) as (heads, outputs):
        for batch in batches:
            watched(batch.to(device))
            progress.advance()
        watches: list[AttentionWatch | FfnWatch] = [*heads.values(), *outputs.values()]
        for watch in watches:
            watch.total_over(processes_of(batches))
    progress.finish()
    layers = [_layer(site, amount, heads[site.name], planned) for site, amount in wanted.attention]
    return layers, [_ffn(model, site, rank, outputs[site.name]) for site, rank in wanted.ffn]


def _layer(site: AttentionSite, amount: int, watch: AttentionWatch, planned: Plan | None) -> LayerReport:
    costs = watch.costs.matrix(watch.core.head_projection)
    parents = shortlist(costs, amount, 1)[0] if planned is None else parents_in(planned.layer(site.name))
    divergence = watch.similarity.jensen_shannon
    energy = float(watch.outputs.gram.trace())
    return _report(
        site,
        parents,
        watch.similarity.cosine,
        similarity_js=_mean(divergence, parents),
        copy_error=sum(float(costs[child, parent]) for child, parent in parents.items()) / max(energy, 1e-300),
    )


def _from_weights(model: nn.Module, site: AttentionSite, amount: int) -> LayerReport:
    cosine = weight_similarity(family_named(site.family).parts(model.get_submodule(site.name)))
    return _report(site, shortlist(1.0 - cosine, amount, 1)[0], cosine, None, None)


def _report(
    site: AttentionSite, parents: Parents, cosine: Tensor, similarity_js: float | None, copy_error: float | None
) -> LayerReport:
    spec = make_spec(cosine.shape[0], parents)
    pairs = tuple(HeadPair(c.head, c.parents, float(cosine[c.head, c.parents[0]])) for c in spec.hallucinated)
    matrix = tuple(tuple(round(value, 6) for value in row) for row in cosine.tolist())
    return LayerReport(
        site.name, spec.num_heads, _mean(cosine, parents), similarity_js, copy_error, spec.kept, pairs, matrix
    )


def _mean(matrix: Tensor, parents: Parents) -> float:
    if not parents:  # no head is hallucinated: how alike each is to the head most like it
        return float(matrix.clone().fill_diagonal_(-1.0).amax(dim=1).mean())
    return sum(float(matrix[child, parent]) for child, parent in parents.items()) / len(parents)


def _ffn(model: nn.Module, site: FfnSite, rank: int, watch: FfnWatch) -> FfnReport:
    return _spectrum_report(model, site, rank, spectrum(watch.outputs.covariance))


def _matrix_spectrum(model: nn.Module, site: FfnSite, rank: int) -> FfnReport:
    weight, _ = scaled(output_scale(model, site.scale), *matrix(model.get_submodule(site.output)))
    return _spectrum_report(model, site, rank, spectrum(weight @ weight.T))


def _spectrum_report(model: nn.Module, site: FfnSite, rank: int, shares: Tensor) -> FfnReport:
    outputs, inputs = matrix(model.get_submodule(site.output))[0].shape
    steps = tuple(float(shares[: outputs * i // STEPS].sum()) for i in range(1, STEPS + 1))
    return FfnReport(site.name, inputs, outputs, rank, float(shares[:rank].sum()), steps)


def _plan(model: nn.Module, selection: Selection, wanted: Wanted, layers: list[LayerReport]) -> Plan:
    """Pairs of heads as in `layers`; where nothing was measured, and for FFNs, what weights or shapes tell."""
    pairs = {each.name: {pair.head: pair.parents[0] for pair in each.hallucinated} for each in layers}
    heads = {each.name: make_spec(each.num_heads, pairs[each.name]) for each in layers}
    found = [
        LayerPlan(
            site.name,
            site.kind,
            (heads[site.name],)
            if site.name in heads
            else tuple(OPERATORS[op].choose_from_weights(model, site, size, selection) for op, size in asked),
        )
        for site, asked in wanted.layers
    ]
    return Plan(tuple(sorted(found, key=lambda layer: layer.kind != "attention")), wanted.skipped)
