"""Rebuilding the structure of a plan on a model's skeleton."""

from __future__ import annotations

from torch import nn

from vitcompact.errors import UsageError
from vitcompact.models import Anatomy, AttentionSite, FfnSite, inspect
from vitcompact.operators.registry import MODEL_OPERATORS, OPERATORS
from vitcompact.plans.schema import LayerPlan, Plan


def replay(model: nn.Module, plan: Plan) -> nn.Module:
    """Give `model` (an untouched timm model) the structure of `plan`, in place, and record the plan on it.

    Values are those that copying gives; loading a state dict strictly or solving comes next.

    Raises:
        UsageError: the plan names a layer that this model does not have, or an operator that does not fit it.
    """
    anatomy = inspect(model) if plan.layers else None
    for layer in plan.layers:
        assert anatomy is not None
        build_layer(model, site_of(anatomy, layer), layer, plan)
    for whole in MODEL_OPERATORS:
        whole.install(model, plan)
    model.vitcompact_plan = plan  # type: ignore[assignment]
    return model


def site_of(anatomy: Anatomy, layer: LayerPlan) -> AttentionSite | FfnSite:
    """The site that a layer of a plan names.

    Raises:
        UsageError: there is none of that name and kind.
    """
    sites: tuple[AttentionSite | FfnSite, ...] = anatomy.attention if layer.kind == "attention" else anatomy.ffn
    for site in sites:
        if site.name == layer.name:
            return site
    known = ", ".join(site.name for site in sites[:4])
    raise UsageError(
        f"the plan compacts {layer.kind} layer {layer.name!r}, which this model does not have (it has {known}, ...)"
    )


def build_layer(model: nn.Module, site: AttentionSite | FfnSite, layer: LayerPlan, plan: Plan) -> None:
    """Apply the operators of one layer of the plan in order."""
    for spec in layer.operators:
        if spec.kind != layer.kind:
            raise UsageError(f"operator {spec.op!r} does not apply to {layer.kind} layer {layer.name!r}")
        OPERATORS[spec.op].build(model, site, spec, plan.form)
