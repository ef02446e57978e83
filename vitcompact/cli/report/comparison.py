"""The page of `eval`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import nn

from vitcompact.analysis import analyze_plan
from vitcompact.checkpoint import LoadedModel
from vitcompact.checkpoint.stored import weight_bytes
from vitcompact.cli.verbs.common import cost_of
from vitcompact.data import EvaluationBatches, from_tensor, names_to_show
from vitcompact.evaluation import EvalResult, MostChanged
from vitcompact.exporting import ExportedModel
from vitcompact.plans.schema import Plan
from vitcompact.reporting.measures import measured_of


def comparison_page(
    loaded: LoadedModel,
    reference: LoadedModel | None,
    result: EvalResult,
    observer: MostChanged | None,
    images: EvaluationBatches,
    device: str,
) -> dict[str, Any]:
    """What `reporting.draw` makes a page of: scores and cost of both, what changed, and what is inside the model."""
    before: dict[str, Any] = {}
    if reference is not None:
        before = {**_cost(reference), "top1": result.reference_top1}
    after = {**_cost(loaded), "top1": result.top1, "agreement": result.agreement, "cosine": result.cosine}
    page: dict[str, Any] = {
        "measured": measured_of(
            (before, after),
            top1_interval=result.top1_change_interval,
            agreement_interval=result.agreement_interval,
            num_samples=result.num_samples,
        ),
        "lead": f"Judged on {result.num_samples} images" + (" beside its original." if before else "."),
    }
    if observer is None or reference is None:
        return page
    inside = _inside(loaded.model, reference.model, observer, device)
    return {**inside, **page, "changed": observer.to_page(images.config, names_to_show(loaded.model, images))}


def _cost(loaded: LoadedModel) -> dict[str, Any]:
    exported = isinstance(loaded.model, ExportedModel)
    stored = loaded.provenance.bytes if exported else weight_bytes(loaded.model, loaded.dtype)
    return {**asdict(cost_of(loaded.model)), "bytes": stored}


def _inside(model: nn.Module, reference: nn.Module, observer: MostChanged, device: str) -> dict[str, Any]:
    """Sections about the layers, where both are models that can be looked into and the plan is known."""
    plan, sample = getattr(model, "vitcompact_plan", None), observer.sample
    modules = not isinstance(model, ExportedModel) and not isinstance(reference, ExportedModel)
    if not modules or sample is None or not isinstance(plan, Plan) or not (plan.layers or plan.merge_tokens):
        return {}
    return analyze_plan(reference, from_tensor(sample, len(sample)), plan, compacted=model, device=device).to_page()
