"""What a budget buys, ready for JSON: harm against cost in total and per layer, and which operator pays."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vitcompact.analysis.budget import BudgetPlan
from vitcompact.plan.budget import INFINITE, Curve, Menu

CURVE_STEPS = 20


def budget_json(found: BudgetPlan) -> dict[str, Any]:
    """Keys: unit, target, harm, curve, operators, layers.

    Harms are expected squared changes of the model's output per image; shares of cost are of the original's total.
    """
    layers = []
    by_operator: dict[str, dict[str, float]] = {}
    for menu, option in zip(found.curve.menus, found.chosen, strict=True):
        for spec, harm in zip(option.operators, option.harms, strict=True):
            entry = by_operator.setdefault(spec.op, {"layers": 0, "harm": 0.0})
            entry["layers"] += 1
            entry["harm"] += harm
        layers.append(
            {
                "name": menu.name,
                "operators": [{"op": spec.op, **asdict(spec)} for spec in option.operators],
                "saving": option.saving / found.whole,
                "harm": option.harm,
                "curve": _layer_curve(menu, found.whole),
            }
        )
    return {
        "unit": found.budget.unit,
        "target": found.budget.target,
        "harm": sum(option.harm for option in found.chosen),
        "curve": _total_curve(found.curve, found.whole),
        "operators": [{"op": op, **entry} for op, entry in by_operator.items()],
        "layers": layers,
    }


def _total_curve(curve: Curve, whole: float) -> list[dict[str, float]]:
    """Least harm with 95 %, 90 %, ... of the cost left, as far down as it goes."""
    points = []
    for step in range(1, CURVE_STEPS):
        left = 1 - step / CURVE_STEPS
        harm = next(
            (h for s, h in zip(curve.saving, curve.harm, strict=True) if s >= (1 - left) * whole and h < INFINITE), None
        )
        if harm is None:
            break
        points.append({"left": round(left, 6), "harm": harm})
    return points


def _layer_curve(menu: Menu, whole: float) -> list[dict[str, float]]:
    return [{"saving": option.saving / whole, "harm": option.harm} for option in menu.pareto()]
