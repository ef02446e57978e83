"""Convert: a pretrained model in, a compacted one in training form out."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vitcompact.calibration.capture import Site
from vitcompact.data import ImageBatches, from_tensor
from vitcompact.errors import UsageError
from vitcompact.layers.attention import CompactAttention
from vitcompact.layers.factor import FactorizedLinear
from vitcompact.models import inspect
from vitcompact.models.cost import meta_copy
from vitcompact.models.plain_vit import no_patch_grid
from vitcompact.operators.merge import given_schedule, install_merging
from vitcompact.operators.replay import replay, site_of
from vitcompact.options.surgery import Hallucinate, Init
from vitcompact.plan.schema import Plan, Skipped
from vitcompact.plan.specs import FactorizeSpec
from vitcompact.planning.planner import plan_for
from vitcompact.planning.request import MergeTokens, budget_of, check_budget
from vitcompact.planning.scope import wanted_layers
from vitcompact.planning.selection import Only, Selection
from vitcompact.surgery.calibrated import convert_calibrated
from vitcompact.surgery.fidelity import fidelity
from vitcompact.surgery.from_weights import convert_from_weights
from vitcompact.surgery.reconstruct import ReconstructOptions
from vitcompact.surgery.solve import Draft, Method
from vitcompact.utils.progress import Progress, silent

logger = logging.getLogger("vitcompact")

FEW_IMAGES = 64


def convert(
    model: nn.Module,
    *,
    ratio: float | None = None,
    rank_ratio: float | None = None,
    target_macs: float | None = None,
    target_params: float | None = None,
    target_latency: float | None = None,
    ops: Iterable[str] | None = None,
    merge_tokens: MergeTokens | None = None,
    images: Tensor | Iterable[Tensor] | ImageBatches | None = None,
    seed: int = 0,
    only: Only | None = None,
    protect: Iterable[str] = (),
    terms: Iterable[str] = ("identity",),
    filter_rank: int = 0,
    branches: int = 0,
    init: Init = "lstsq",
    hallucinate: Hallucinate = "refit",
    reconstruct: int | ReconstructOptions = 0,
    without: Iterable[str] = (),
    plan: Plan | None = None,
    batch_size: int = 64,
    cache_gb: float = 4.0,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> nn.Module:
    """Compact a timm model by closed-form surgery; returns a new module in training form, `model` is untouched.

    Without a target, half of the heads take their attention map from another head, chosen and refitted by output error
    on the images, and each FFN's output matrix becomes a product of two. With a target, all operators share a global
    budget, spent where it harms the model's output least. Works block by block: inputs come from the converted stream,
    targets from the original one. Memory is the statistics, one batch and one block's activations.

    Args:
        ratio: share of heads to hallucinate, `floor(ratio * heads)` per layer; 0.5 unless there is a target.
        rank_ratio: rank of the FFN output matrix over its outputs, rounded to a multiple of 8; 0.5 likewise.
        target_macs, target_params, target_latency: what is to be left of the MACs, of the parameters, or of the time
            that a batch takes on `device`, in (0, 1); one of them, needs images.
        ops: operators that a budget may use; all by default.
        merge_tokens: pairs of similar tokens that each block of a plain ViT merges (ToMe), one number or one for each
            block; they count towards a target. `auto` merges as many as harm least beside a budget's operators.
        images: normalised calibration images `(n, 3, height, width)` or batches of them, no labels. None converts
            from the weights alone, which loses much accuracy.
        only: `heads` or `ffn` for one of the two.
        protect: glob patterns of module paths to leave alone.
        terms: further paths of a hallucinated map, out of `identity`, `mean` and `conv` (a 3x3 filter of every head's
            own values, on plain ViTs only).
        branches: silent branches of each FFN factor (paper, section 3.3); short fine-tuning gains nothing from them.
        init, hallucinate: `svd` and `copy` are the naive methods, kept for comparison.
        reconstruct: Adam steps per block after the closed form, on the same images.
        without: ingredients to leave out, for comparison; out of `INGREDIENTS`.
        plan: replay this plan's structure instead of choosing one; its values are solved anew.
        cache_gb: activations kept in memory in GB (1e9 bytes); more goes to a temporary folder.
        device: where to work; the result is where `model` is.
        seed: initial values of the silent branches.

    Raises:
        NothingToCompactError: no layer of this architecture can be compacted.
        UsageError: bad options, or a model that was already converted.
        DataError: images that give non-finite activations.
    """
    budget = budget_of(target_macs, target_params, target_latency, ops, merge_tokens)
    check_budget(budget, (ratio, rank_ratio), plan, images)
    shares = [0.5 if share is None else share for share in (ratio, rank_ratio)]
    selection = Selection(shares[0], shares[1], only, tuple(protect), tuple(terms), filter_rank, branches)
    _check_method(init, hallucinate)
    _check_model(model, selection)
    _check_merging(model, selection, merge_tokens, plan)
    method = Method(init, hallucinate, reconstruct=_reconstruct(reconstruct)).without(without)
    original = _frozen_copy(model, device)
    batches = None if images is None else from_tensor(images, batch_size)
    if batches is not None and batches.num_samples < FEW_IMAGES:
        logger.warning("only %d calibration images; 128 or more are recommended", batches.num_samples)
    if budget is not None and batches is not None:
        plan = plan_for(
            *(original, batches, budget),
            selection=selection,
            weigh=method.sensitivity,
            cache_bytes=cache_gb * 1e9,
            progress=progress,
        ).plan
    schedule = plan.merge_tokens if plan is not None else given_schedule(model, merge_tokens)
    drafts, skipped = _drafts(model, selection, plan)
    work = copy.deepcopy(original)
    with torch.no_grad():
        if batches is None:
            logger.warning("no images were given: converting from the weights alone, which loses much accuracy")
            layers = convert_from_weights(work, drafts, progress)
        else:
            layers, unreachable = convert_calibrated(
                original, work, batches, drafts, selection, method, cache_gb * 1e9, progress
            )
            skipped += unreachable
    done = Plan(tuple(layers), tuple(skipped), merge_tokens=schedule)
    if schedule:
        install_merging(work, schedule)
    work.vitcompact_plan = done  # type: ignore[assignment]
    work.vitcompact_fidelity = None if batches is None else fidelity(original, work, batches)  # type: ignore[assignment]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _grow(work, done)
    work.to(next(model.parameters()).device)
    return work


def _reconstruct(wanted: int | ReconstructOptions) -> ReconstructOptions:
    return wanted if isinstance(wanted, ReconstructOptions) else ReconstructOptions(steps=wanted)


def _grow(work: nn.Module, plan: Plan) -> None:
    """Give the solved, folded layers their training form and make every parameter trainable."""
    for layer in plan.layers:
        for module in work.get_submodule(layer.name).modules():
            if isinstance(module, CompactAttention):
                module.grow()
            elif isinstance(module, FactorizedLinear):
                module.grow(next(spec.branches for spec in layer.operators if isinstance(spec, FactorizeSpec)))
    work.requires_grad_(True)


def _check_model(model: nn.Module, selection: Selection) -> None:
    before = getattr(model, "vitcompact_plan", None)
    if before is not None and (before.layers or before.merge_tokens):
        raise UsageError("this model is converted already; convert the original checkpoint instead")
    if "conv" in selection.terms and (reason := no_patch_grid(model)) is not None:
        logger.warning("no conv paths here: %s", reason)


def _check_merging(model: nn.Module, selection: Selection, merge_tokens: MergeTokens | None, plan: Plan | None) -> None:
    """Refuse, before anything is solved, tokens that cannot be merged.

    Raises:
        UsageError: see above.
    """
    if plan is not None and merge_tokens is not None:
        raise UsageError("`plan` says how many tokens are merged: leave out `merge_tokens`")
    if plan is not None and plan.merge_tokens:
        replay(meta_copy(model), plan)
    elif (merge_tokens == "auto" or given_schedule(model, merge_tokens)) and (
        "conv" in selection.terms or selection.filter_rank
    ):
        raise UsageError("`merge_tokens` does not go with 3x3 filters, which need the whole grid of tokens")


def _check_method(init: str, hallucinate: str) -> None:
    if init not in ("lstsq", "svd"):
        raise UsageError(f"`init` takes 'lstsq' or 'svd', got {init!r}")
    if hallucinate not in ("refit", "copy"):
        raise UsageError(f"`hallucinate` takes 'refit' or 'copy', got {hallucinate!r}")


def _frozen_copy(model: nn.Module, device: str | torch.device) -> nn.Module:
    """The model in float32 on `device`; nothing writes to it, so where it is that already its memory is shared."""
    shared: dict[int, object] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    shared |= {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, shared).eval().to(device=device, dtype=torch.float32).requires_grad_(False)


def _drafts(
    model: nn.Module, selection: Selection, plan: Plan | None
) -> tuple[dict[str, tuple[Site, Draft]], list[Skipped]]:
    """Sites to compact in forward order with what they are to become, and what is left alone."""
    if plan is not None:
        anatomy = inspect(model)
        given = {layer.name: (site_of(anatomy, layer), Draft(layer.operators)) for layer in plan.layers}
        return given, list(plan.skipped)
    wanted = wanted_layers(model, selection)
    drafts: dict[str, tuple[Site, Draft]] = {site.name: (site, Draft((), count)) for site, count in wanted.attention}
    for site, rank in wanted.ffn:
        drafts[site.name] = (site, Draft((FactorizeSpec(rank, selection.branches),)))
    return drafts, list(wanted.skipped)
