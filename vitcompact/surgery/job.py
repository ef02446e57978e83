"""A surgery that was asked for: checked, prepared and carried out; `plan` and `convert` keep different parts of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vitcompact.calibration.output_sensitivity import OutputSensitivity
from vitcompact.data import (
    ImageBatches,
    check_model,
    example_of,
    has_no_weights,
    images_for,
    num_distinct,
    processes_of,
)
from vitcompact.errors import UsageError
from vitcompact.models import Site, inspect
from vitcompact.models.cost import meta_copy
from vitcompact.models.plain_vit import no_patch_grid
from vitcompact.operators.merge import given_schedule
from vitcompact.operators.replay import replay, site_of
from vitcompact.options.selection import Allocation, Keep
from vitcompact.options.shared import AmpDType, Backend
from vitcompact.options.surgery import Hallucinate, Init
from vitcompact.planning.allocation import check_allocation, plan_shares
from vitcompact.planning.budget_report import budget_json
from vitcompact.planning.curves import Curves
from vitcompact.planning.merging import merging_as_given
from vitcompact.planning.planner import plan_for
from vitcompact.planning.request import Budget, MergeTokens, budget_of, check_budget, check_keep, check_one_clock
from vitcompact.planning.scope import check_patterns, wanted_layers
from vitcompact.planning.selection import Only, Selection, patterns
from vitcompact.plans.schema import Plan, Skipped
from vitcompact.surgery.calibrated import convert_calibrated
from vitcompact.surgery.from_weights import convert_from_weights
from vitcompact.surgery.reconstruct import ReconstructOptions
from vitcompact.surgery.solve import Draft, Method
from vitcompact.surgery.tried import try_model
from vitcompact.utils.copies import copy_of
from vitcompact.utils.device import frozen_copy
from vitcompact.utils.progress import Progress

logger = logging.getLogger("vitcompact")

FEW_IMAGES = 64


@dataclass(frozen=True)
class Asked:
    """How much is to be compacted, as users say it: two shares, or a budget."""

    ratio: float | None
    rank_ratio: float | None
    target_macs: float | None
    target_params: float | None
    target_latency: float | None
    ops: Iterable[str] | None
    merge_tokens: MergeTokens | None
    allocation: Allocation | None
    keep: Keep | None
    latency_backend: Backend | None
    latency_batch: int | None
    latency_dtype: AmpDType | None


@dataclass(frozen=True)
class Limits:
    """Where it may be compacted, and what hallucinated maps and FFN factors may be made of."""

    only: Only | None
    protect: Iterable[str]
    terms: Iterable[str]
    filter_rank: int
    branches: int
    size_multiple: int

    def selection(self, asked: Asked) -> Selection:
        """The layers that these limits and the two shares select."""
        ratio, rank_ratio = (0.5 if share is None else share for share in (asked.ratio, asked.rank_ratio))
        return Selection(
            *(ratio, rank_ratio, self.only, patterns(self.protect), tuple(self.terms), self.filter_rank),
            *(self.branches, self.size_multiple),
        )


@dataclass(frozen=True)
class Job:
    """A surgery that was found possible; `plan` and `convert` differ only in what they keep of it.

    Attributes:
        original: the model in float32 on the device to work on, frozen.
        images: calibration images, None for surgery from the weights alone.
        keep: what counts of the features of a model without a head.
        schedule: pairs of tokens that each block is to merge, where numbers were given.
        sensitivity: of the original's layers, measured once; None without images, or where it is left out.
    """

    original: nn.Module
    images: ImageBatches | None
    selection: Selection
    budget: Budget | None
    method: Method
    keep: Keep
    schedule: tuple[int, ...]
    sensitivity: OutputSensitivity | None
    cache_bytes: float
    allocation: Allocation | None
    curves: Curves | None
    progress: Progress

    def measured_plan(self) -> tuple[Plan | None, dict[str, Any] | None]:
        """The plan for a budget or for shares spread by expected loss, measured without converting anything.

        Beside it what `budget_json` says, of a budget. None where every layer gets its share.

        Raises:
            UsageError: the target is out of reach.
        """
        if self.images is None:
            return None, None
        if self.allocation == "global":
            shares = plan_shares(
                *(self.original, self.images, self.selection),
                curves=self.curves,
                keep=self.keep,
                weigh=self.method.sensitivity,
                cache_bytes=self.cache_bytes,
                progress=self.progress,
            )
            return _agreed(self._merging(shares), self.images), None
        if self.budget is None:
            return None, None
        found = plan_for(
            *(self.original, self.images, self.budget),
            selection=self.selection,
            curves=self.curves,
            weigh=self.method.sensitivity,
            known=self.sensitivity,
            cache_bytes=self.cache_bytes,
            progress=self.progress,
        )
        return _agreed(found.plan, self.images), budget_json(found)

    def _merging(self, plan: Plan) -> Plan:
        """The same plan, merging tokens as numbers say."""
        return merging_as_given(plan, self.original, self.images, self.schedule, self.sensitivity, self.progress)

    @torch.no_grad()
    def solve(self, plan: Plan | None) -> tuple[nn.Module, Plan]:
        """A copy of the original with structure and solved values, folded, and the plan that it followed.

        Args:
            plan: the structure; None chooses pairs of heads as it goes, each layer's in the stream converted so far.
        """
        drafts, skipped = _drafts(self.original, self.selection, plan)
        work = copy_of(self.original)
        if self.images is None:
            if not has_no_weights(work):
                logger.warning("no images were given: converting from the weights alone, which loses much accuracy")
            layers = convert_from_weights(work, drafts, self.selection, self.progress)
        else:
            layers, unreachable = convert_calibrated(
                *(self.original, work, self.images, drafts, self.selection, self.method),
                *(self.sensitivity, self.cache_bytes, self.progress),
            )
            skipped += unreachable
        followed = self._merging(Plan(())) if plan is None else plan
        return work, replace(followed, layers=tuple(layers), skipped=tuple(skipped), form="training")


def prepare(
    model: nn.Module,
    images: Tensor | Iterable[Tensor] | ImageBatches | None,
    plan: Plan | None,
    *,
    asked: Asked,
    limits: Limits,
    method: Method,
    batch_size: int,
    cache_gb: float,
    curves: Curves | None,
    device: str | torch.device,
    progress: Progress,
    without_values: bool = False,
) -> Job:
    """Check all that was asked for before the long work.

    Args:
        without_values: the structure is all that is wanted, for which a model on the meta device will do.

    Raises:
        UsageError: options that exclude each other, or a model that cannot be converted.
        DataError: images that this model does not take.
    """
    targets = asked.target_macs, asked.target_params, asked.target_latency
    timed = asked.latency_backend, asked.latency_batch, asked.latency_dtype
    budget = budget_of(*targets, asked.ops, asked.merge_tokens, asked.keep, *timed)
    check_budget(budget, (asked.ratio, asked.rank_ratio), plan, images)
    check_keep(asked.keep, images, model)
    check_one_clock(budget, images)
    selection = limits.selection(asked)
    check_model(model, weights=not without_values or budget is not None or images is not None)
    _check_model(model, selection)
    check_allocation(asked.allocation, selection, budget, plan, images)
    check_patterns(model, selection.protect)
    if plan is not None:
        _check_plan(model, plan)
    weighed = images is not None and method.sensitivity
    _check_merging(model, selection, asked.merge_tokens, plan, weighed)
    batches = None if images is None else images_for(model, images, batch_size)
    original = meta_copy(model).eval() if has_no_weights(model) else frozen_copy(model, device)
    if batches is not None:
        _warn_of_few(batches)
        try_model(original, example_of(batches, 2))
    schedule, keep = given_schedule(model, asked.merge_tokens), asked.keep or "both"
    sensitivity = None
    if batches is not None and weighed:
        measured = OutputSensitivity if curves is None else curves.sensitivity
        sensitivity = measured(original, batches, keep, progress)
    return Job(
        *(original, batches, selection, budget, method, keep, schedule, sensitivity),
        *(cache_gb * 1e9, asked.allocation, curves, progress),
    )


def _agreed(plan: Plan, images: ImageBatches) -> Plan:
    """The plan that the first of several processes has made, which is theirs too but for rounding."""
    processes = processes_of(images)
    return Plan.from_json(processes.agreed(plan.to_json)) if processes.several else plan


def method_of(
    init: Init, hallucinate: Hallucinate, reconstruct: int | ReconstructOptions, without: Iterable[str]
) -> Method:
    """How values are found, from the arguments of `plan` and `convert`.

    Raises:
        UsageError: no such method or ingredient.
    """
    _check_method(init, hallucinate)
    return Method(init, hallucinate, reconstruct=_reconstruct(reconstruct)).without(without)


def _reconstruct(wanted: int | ReconstructOptions) -> ReconstructOptions:
    return wanted if isinstance(wanted, ReconstructOptions) else ReconstructOptions(steps=wanted)


def _warn_of_few(images: ImageBatches) -> None:
    if images.num_samples < FEW_IMAGES:
        logger.warning("only %d calibration images; 128 or more are recommended", images.num_samples)
    distinct, seen = num_distinct(images)
    if distinct * 2 <= seen:
        logger.warning(
            "only %d of %d calibration images differ, the others are (nearly) copies: what is measured on images held "
            "out says little about other images; give images as varied as those that the model will see",
            *(distinct, seen),
        )


def _check_model(model: nn.Module, selection: Selection) -> None:
    before = getattr(model, "vitcompact_plan", None)
    if before is not None and (before.layers or before.merge_tokens):
        raise UsageError("this model is converted already; convert the original checkpoint instead")
    if "conv" in selection.terms and (reason := no_patch_grid(model)) is not None:
        logger.warning("no conv paths here: %s", reason)


def _check_merging(
    model: nn.Module, selection: Selection, merge_tokens: MergeTokens | None, plan: Plan | None, measured: bool
) -> None:
    """Refuse, before anything is solved, tokens that cannot be merged.

    Args:
        measured: whether there are images, and output sensitivity is measured on them.

    Raises:
        UsageError: see above.
    """
    if plan is not None and merge_tokens is not None:
        raise UsageError("`plan` says how many tokens are merged: leave out `merge_tokens`")
    if plan is not None and plan.merge_tokens and plan.merge_by == "sensitivity" and not measured:
        raise UsageError(
            "`plan` compares tokens by output sensitivity (merge_by), which is measured on images: give `images`, and "
            "leave out `without='sensitivity'`"
        )
    if (
        plan is None
        and (merge_tokens == "auto" or given_schedule(model, merge_tokens))
        and ("conv" in selection.terms or selection.filter_rank)
    ):
        raise UsageError("`merge_tokens` does not go with 3x3 filters, which need the whole grid of tokens")


def _check_plan(model: nn.Module, plan: Plan) -> None:
    """Build a plan without values, so that what does not fit the model is refused before the work.

    Raises:
        UsageError: a layer that the model does not have, sizes larger than the layer's, or another number of blocks.
    """
    try:
        replay(meta_copy(model), plan)
    except UsageError as error:
        raise UsageError(f"`plan` does not fit this model: {error}") from error


def _check_method(init: str, hallucinate: str) -> None:
    if init not in ("lstsq", "svd"):
        raise UsageError(f"`init` takes 'lstsq' or 'svd', got {init!r}")
    if hallucinate not in ("refit", "copy"):
        raise UsageError(f"`hallucinate` takes 'refit' or 'copy', got {hallucinate!r}")


def _drafts(
    model: nn.Module, selection: Selection, plan: Plan | None
) -> tuple[dict[str, tuple[Site, Draft]], list[Skipped]]:
    """Sites to compact in forward order with what they are to become, and what is left alone."""
    if plan is not None:
        anatomy = inspect(model)
        given = {layer.name: (site_of(anatomy, layer), Draft(layer.kind, layer.operators)) for layer in plan.layers}
        return given, list(plan.skipped)
    wanted = wanted_layers(model, selection)
    drafts: dict[str, tuple[Site, Draft]] = {
        site.name: (site, Draft(site.kind, requested=asked)) for site, asked in wanted.layers
    }
    return drafts, list(wanted.skipped)
