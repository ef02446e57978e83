"""The page of `convert`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from vitcompact.analysis import analyze_plan
from vitcompact.analysis.savings import savings
from vitcompact.attached import results as attached
from vitcompact.data import CalibrationImages, first_images, names_to_show
from vitcompact.evaluation import MostChanged
from vitcompact.models.forward import eval_mode, num_classes
from vitcompact.reporting.measures import measured_of
from vitcompact.surgery.fidelity import fidelity
from vitcompact.utils.device import frozen_copy

LOOKED_AT = 64
"""Images on which likeness of heads and spectra are measured."""


def conversion_page(
    original: nn.Module, model: nn.Module, images: CalibrationImages | None, found: Mapping[str, Any], device: str
) -> dict[str, Any]:
    """What `reporting.draw` makes a page of.

    Args:
        model: in training form.
        found: the results as `convert --json` has them.
    """
    plan, budget = attached(model).plan, attached(model).budget
    page = {
        "measured": measured_in_conversion(found),
        "plan": plan.to_json(),
        "skipped": plan.to_json()["skipped"],
        "budget": budget,
        "lead": "In training form: to be finetuned and folded. Cost is that of the folded model.",
    }
    if images is None:
        return {**page, "savings": savings(original, plan)}
    before, after = frozen_copy(original, device), frozen_copy(model, device)
    few = first_images(images, LOOKED_AT)
    inside = analyze_plan(original, few, plan, compacted=model, budget=budget, device=device)
    changed = MostChanged(bool(num_classes(original)))
    with eval_mode(before, after):
        fidelity(before, after, images, changed)
    return {**inside.to_page(), **page, "changed": changed.to_page(images.config, names_to_show(original, images))}


def measured_in_conversion(found: Mapping[str, Any]) -> dict[str, Any]:
    """Both models as `reporting.measures` has them, from the results of `convert`."""
    costs = [name for name in ("params", "macs", "bytes") if name in found]
    sides = [{name: found[name][side] for name in costs} for side in ("before", "after")]
    like = found.get("fidelity") or {}
    sides[1] |= {name: like[name] for name in ("agreement", "cosine") if like.get(name) is not None}
    known = {"agreement_interval": like.get("agreement_interval"), "num_samples": like.get("num_samples")}
    return measured_of(sides, **known)
