"""Fold: re-parameterised branches, BatchNorm and alpha merged into plain layers, with proof."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from vitcompact.data import resolve_input
from vitcompact.errors import UsageError
from vitcompact.fold.verify import FoldParity, compare, perturbed, require
from vitcompact.layers.attention import CompactAttention
from vitcompact.plan.schema import LayerPlan, Plan
from vitcompact.plan.specs import HallucinateSpec

TOLERANCE = 2e-4
PROBES = 8


def fold(
    model: nn.Module,
    *,
    tolerance: float = TOLERANCE,
    images: Tensor | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> nn.Module:
    """Fold a converted model into plain layers; returns a new module in eval mode with `vitcompact_parity`.

    Merging is done in float64. The result is compared with `model` in float32 on `images` (or on seeded noise), and
    the same fold is proven on a copy with every parameter perturbed. Folding a folded model changes nothing.

    Args:
        tolerance: largest relative difference allowed, `max |difference| / max |output|`.
        images: normalised images `(n, channels, height, width)` to compare on.
        dtype: the type that weights will be stored in, for `cast_max_abs_diff`; None is float32.

    Raises:
        UsageError: the model was not converted.
        VerificationError: the folded model differs by more than `tolerance`.
    """
    plan = getattr(model, "vitcompact_plan", None)
    if not isinstance(plan, Plan) or not plan.layers:
        raise UsageError("this model was not converted by vitcompact, so there is nothing to fold; run convert first")
    reference = copy.deepcopy(model).eval().float()
    probes = _probes(reference, images, seed)
    folded = fused(reference)
    max_abs_diff, rel_diff, agreement = compare(reference, folded, probes)
    require(rel_diff, tolerance, "on its own weights")
    moved = perturbed(reference, seed)
    _, moved_diff, _ = compare(moved, fused(moved), probes)
    require(moved_diff, tolerance, "on perturbed weights")
    cast = 0.0 if dtype in (None, torch.float32) else compare(folded, _stored_in(folded, dtype), probes)[0]
    folded.vitcompact_plan = _folded_plan(folded, plan)  # type: ignore[assignment]
    folded.vitcompact_parity = FoldParity(max_abs_diff, max(rel_diff, moved_diff), cast, agreement)  # type: ignore[assignment]
    return folded


def fused(model: nn.Module) -> nn.Module:
    """A copy with every layer that can fold folded."""
    folded = copy.deepcopy(model)
    for module in list(folded.modules()):
        fuse = getattr(module, "fuse", None)
        if callable(fuse):
            fuse()
    return folded


def _folded_plan(folded: nn.Module, plan: Plan) -> Plan:
    """The plan of what is there after folding: paths whose coefficients are all zero are gone."""

    def current(layer: LayerPlan) -> LayerPlan:
        module = folded.get_submodule(layer.name)
        operators = tuple(
            replace(spec, identity=module.beta is not None, mean=module.gamma is not None)
            if isinstance(spec, HallucinateSpec) and isinstance(module, CompactAttention)
            else spec
            for spec in layer.operators
        )
        return replace(layer, operators=operators)

    return replace(plan.folded(), layers=tuple(map(current, plan.layers)))


def _stored_in(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    return copy.deepcopy(model).to(dtype).float()


def _probes(model: nn.Module, images: Tensor | None, seed: int) -> Tensor:
    weight = next(model.parameters())
    if images is not None:
        return images.to(weight)
    return torch.randn(PROBES, *resolve_input(model).input_size, generator=torch.Generator().manual_seed(seed)).to(
        weight
    )
