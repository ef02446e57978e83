"""What an analysis shows on the user's own pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from vitcompact.analysis.maps import attention_pictures
from vitcompact.analysis.merged import merged_pictures
from vitcompact.analysis.report import LayerReport
from vitcompact.calibration.output_sensitivity import OutputSensitivity
from vitcompact.data import ImageBatches, as_pixels, example_of, resolve_input
from vitcompact.models.forward import eval_mode
from vitcompact.operators import MODEL_OPERATORS
from vitcompact.planning.scope import Wanted
from vitcompact.plans.schema import Plan
from vitcompact.reporting import picture_uri
from vitcompact.utils.copies import copy_of
from vitcompact.utils.device import frozen_copy

PICTURES = 4
MAP_SIZE = 96
"""Longest side in pixels of the pictures above maps."""


def pictures_of(
    model: nn.Module,
    images: ImageBatches,
    wanted: Wanted,
    layers: Sequence[LayerReport],
    compacted: nn.Module | None = None,
    merging: nn.Module | None = None,
) -> dict[str, Any]:
    """`maps` and `merged`, as far as this model has them, on the first four images.

    Args:
        compacted: what was made of it, whose maps are shown beside its own.
        merging: the same with tokens merged, of which it is shown which; where there is `compacted`, it is.
    """
    few = example_of(images, PICTURES)
    if not few.isfinite().all() or few.shape[1] not in (1, 3):
        return {}
    pixels = as_pixels(few, resolve_input(model)).permute(0, 2, 3, 1).cpu().numpy()
    original = frozen_copy(model, "cpu")
    after = None if compacted is None else frozen_copy(compacted, "cpu")
    found: dict[str, Any] = {}
    sites = [site for site, _ in wanted.attention]
    maps = attention_pictures(original, few, sites, layers, after) if sites else None
    if maps:
        found["maps"] = {"pictures": [picture_uri(each, MAP_SIZE) for each in pixels], **maps}
    merging = merging if after is None else after
    with eval_mode(*([] if merging is None else [merging])):
        merged = [] if merging is None else merged_pictures(merging, few, pixels)
    return {**found, "merged": merged} if merged else found


def merging_copy(model: nn.Module, plan: Plan, known: OutputSensitivity | None) -> nn.Module | None:
    """The original with what of the plan concerns the whole model, which tokens would merge; None where none would.

    Args:
        known: of the original; None without images.
    """
    if not any(plan.merge_tokens):
        return None
    work = copy_of(model).eval()
    for operator in MODEL_OPERATORS:
        operator.install(work, plan)
        operator.solve(work, plan, known)
    return work
