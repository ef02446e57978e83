"""Fold: re-parameterised branches, BatchNorm and alpha merged into plain layers, with proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from vitcompact.data import ImageBatches, check_images, check_model, check_weights, open_model, resolve_input
from vitcompact.errors import UsageError, VerificationError
from vitcompact.folding.verify import FoldParity, compare, merging_effect, perturbed, require
from vitcompact.layers.branches import fuse_layers
from vitcompact.operators import OPERATORS
from vitcompact.operators.merge import install_merging, merge_schedule, stop_merging
from vitcompact.plans.schema import LayerPlan, Plan
from vitcompact.utils.copies import copy_of

TOLERANCE = 2e-4
PROBES = 8


def fold(
    model: nn.Module,
    *,
    tolerance: float = TOLERANCE,
    images: Tensor | None = None,
    dtype: torch.dtype | None = None,
    merge_tokens: int | Sequence[int] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Fold a converted model into plain layers; returns a new module in eval mode with `vitcompact_parity`.

    Weights are merged in float64 and come back in the precision of `model`. Before that cast the result is compared
    with `model` in float32 on `images` (or on seeded noise), and the same fold is proven on a copy with every parameter
    perturbed. Folding a folded model changes nothing.

    Token merging is switched on after that proof: it is not part of it, since it changes outputs. What it does to them
    is measured on `images` and kept as `vitcompact_merging`.

    Args:
        tolerance: largest relative difference allowed, `max |difference| / max |output|`.
        images: normalised images `(n, channels, height, width)` to compare on.
        dtype: the type that weights will be stored in, for `cast_max_abs_diff`; None is that of `model`.
        merge_tokens: pairs of tokens that each block of a plain ViT merges (one number, or one for each block), 0 for
            none; None leaves it as it is in `model`. With a number, a model that was not converted is taken too.

    Raises:
        UsageError: the model was not converted, its tokens cannot be merged, or it does not take `images`.
        VerificationError: the folded model differs by more than `tolerance`.
    """
    opened = open_model(model)
    model, images = opened.model, opened.images(images)
    check_model(model, weights=False)
    if isinstance(images, ImageBatches):
        images = torch.cat(list(images))
    if images is not None:
        check_images(model, images)
    home = next(model.parameters())
    dtype = dtype or home.dtype
    plan = getattr(model, "vitcompact_plan", None) or Plan(layers=())
    if not plan.layers and not plan.merge_tokens and merge_tokens is None:
        raise UsageError("this model was not converted by vitcompact, so there is nothing to fold; run convert first")
    if merge_tokens is not None:
        plan = replace(plan, merge_tokens=merge_schedule(model, merge_tokens), merge_by="tokens")
    schedule = plan.merge_tokens
    check_weights(model)
    reference = copy_of(model).eval().float()
    stop_merging(reference, for_good=merge_tokens is not None)
    probes = _probes(reference, images, seed)
    folded = fused(reference)
    max_abs_diff, rel_diff, agreement = compare(reference, folded, probes)
    require(rel_diff, tolerance, "on its own weights")
    moved_diff = _perturbed_difference(reference, probes, tolerance, seed)
    require(moved_diff, tolerance, "on perturbed weights")
    cast = 0.0 if dtype == torch.float32 else compare(folded, _stored_in(folded, dtype), probes)[0]
    if schedule:
        install_merging(folded, schedule, plan.merge_by)
        folded.vitcompact_merging = merging_effect(reference, folded, probes, schedule)  # type: ignore[assignment]
    folded.vitcompact_plan = _folded_plan(folded, plan)  # type: ignore[assignment]
    folded.vitcompact_parity = FoldParity(max_abs_diff, max(rel_diff, moved_diff), cast, agreement)  # type: ignore[assignment]
    return opened.put_back(folded.to(home.dtype))


def fused(model: nn.Module) -> nn.Module:
    """A copy with every layer that can fold folded."""
    folded = copy_of(model)
    fuse_layers(folded)
    return folded


def _perturbed_difference(reference: nn.Module, probes: Tensor, tolerance: float, seed: int) -> float:
    """Relative difference that folding makes to a perturbed copy.

    Weights that no training has tamed may amplify float32's rounding without bound (deep convolutional nets do), so a
    difference above `tolerance` counts only if float64 has it too.
    """
    moved = perturbed(reference, seed)
    try:
        _, difference, _ = compare(moved, fused(moved), probes)
    except VerificationError:
        difference = float("inf")
    if difference > tolerance:
        moved = moved.cpu().double()
        _, difference, _ = compare(moved, fused(moved), probes.cpu().double())
    return difference


def _folded_plan(folded: nn.Module, plan: Plan) -> Plan:
    """The plan of what is there after folding: paths whose coefficients are all zero are gone."""

    def current(layer: LayerPlan) -> LayerPlan:
        module = folded.get_submodule(layer.name)
        return replace(layer, operators=tuple(OPERATORS[spec.op].current(module, spec) for spec in layer.operators))

    return replace(plan.folded(), layers=tuple(map(current, plan.layers)))


def _stored_in(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy_of(model).to(dtype).float()


def _probes(model: nn.Module, images: Tensor | None, seed: int) -> Tensor:
    weight = next(model.parameters())
    if images is not None:
        return images.to(weight)
    return torch.randn(PROBES, *resolve_input(model).input_size, generator=torch.Generator().manual_seed(seed)).to(
        weight
    )
