"""What a budget buys, ready for JSON: harm against cost in total and per layer, and which operator pays."""

from __future__ import annotations

from typing import Any

from vitcompact.planning.knapsack import INFINITE, Curve, Menu
from vitcompact.planning.merging import Merging
from vitcompact.planning.planner import BudgetPlan

CURVE_STEPS = 20


def budget_json(found: BudgetPlan) -> dict[str, Any]:
    """Keys: unit, target, harm, curve, operators, layers, and merging where merging tokens was an option.

    Harms are expected squared changes of the model's output per image; shares of cost are of the original's total.
    Layers and their curves are those beside the merging that was chosen.
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
                "operators": [spec.to_json() for spec in option.operators],
                "saving": option.saving / found.whole,
                "harm": option.harm,
                "curve": _layer_curve(menu, found.whole),
            }
        )
    merging = found.merging
    document = {
        "unit": found.budget.unit,
        "target": found.budget.target,
        "harm": found.harm,
        "curve": _total_curve(found.curve, found.whole, merging),
        "operators": [{"op": op, **entry} for op, entry in by_operator.items()],
        "layers": layers,
    }
    if not found.offered:
        return document
    chosen = {"merge_tokens": [], "saving": 0.0, "harm": 0.0} if merging is None else _merging_json(merging)
    return {**document, "merging": {**chosen, "curve": [_merging_json(each) for each in found.offered]}}


def _merging_json(merging: Merging) -> dict[str, Any]:
    return {"merge_tokens": list(merging.schedule), "saving": 1 - merging.left, "harm": merging.harm}


def _total_curve(curve: Curve, whole: float, merging: Merging | None) -> list[dict[str, float]]:
    """Least harm with 95 %, 90 %, ... of the cost left, as far down as it goes; beside `merging` if there is any."""
    points = []
    most, beside = (1.0, 0.0) if merging is None else (merging.left, merging.harm)
    for step in range(1, CURVE_STEPS):
        left = 1 - step / CURVE_STEPS
        if left > most:
            continue
        saving = (most - left) * whole
        harm = next((h for s, h in zip(curve.saving, curve.harm, strict=True) if s >= saving and h < INFINITE), None)
        if harm is None:
            break
        points.append({"left": round(left, 6), "harm": harm + beside})
    return points


def _layer_curve(menu: Menu, whole: float) -> list[dict[str, float]]:
    return [{"saving": option.saving / whole, "harm": option.harm} for option in menu.pareto()]
