"""What a budget buys, ready for JSON: loss increase against cost in total and per layer, and which operator pays."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vitcompact.planning.knapsack import INFINITE, Curve, Menu
from vitcompact.planning.merging import Merging
from vitcompact.planning.planner import BudgetPlan

CURVE_STEPS = 20


def budget_json(found: BudgetPlan) -> dict[str, Any]:
    """Keys: unit, target, left, interval, backend, harm, curve, operators, layers, and merging where it was an option.

    For a budget of latency, `batch_size` and `dtype` beside `backend` say how layers and plans were run.

    Where it is known, `predicted` says what a harm means to answers: measure, value, interval, num_samples; points of
    the curve have its value.

    Harms are expected squared changes of the model's output per image; shares of cost are of the original's total.
    Layers and their curves are those beside the merging that was chosen.
    """
    layers = []
    by_operator: dict[str, dict[str, float]] = {}
    for menu, option in zip(found.curve.menus, found.chosen, strict=True):
        for spec, loss in zip(option.operators, option.losses, strict=True):
            entry = by_operator.setdefault(spec.op, {"layers": 0, "harm": 0.0})
            entry["layers"] += 1
            entry["harm"] += loss
        layers.append(
            {
                "name": menu.name,
                "operators": [spec.to_json() for spec in option.operators],
                "saving": option.saving / found.whole,
                "harm": option.loss,
                "curve": _layer_curve(menu, found.whole),
            }
        )
    merging, reached = found.merging, found.plan.reached
    document: dict[str, Any] = {
        "unit": found.budget.unit,
        "target": found.budget.target,
        "left": None if reached is None else reached.left,
        "interval": None if reached is None else reached.interval,
        **(asdict(found.budget.serving) if found.budget.unit == "latency" else {"backend": None}),
        "harm": found.loss,
        "curve": _total_curve(found.curve, found.whole, merging),
        "operators": [{"op": op, **entry} for op, entry in by_operator.items()],
        "layers": layers,
    }
    if (predicted := found.predicted) is not None:
        document["predicted"] = predicted.to_json(found.loss)
        document["curve"] = [{**point, "predicted": predicted.at(point["harm"])} for point in document["curve"]]
    if not found.offered:
        return document
    chosen = {"merge_tokens": [], "saving": 0.0, "harm": 0.0} if merging is None else _merging_json(merging)
    return {**document, "merging": {**chosen, "curve": [_merging_json(each) for each in found.offered]}}


def _merging_json(merging: Merging) -> dict[str, Any]:
    return {"merge_tokens": list(merging.schedule), "saving": 1 - merging.left, "harm": merging.loss}


def _total_curve(curve: Curve, whole: float, merging: Merging | None) -> list[dict[str, float]]:
    """Least loss with 95 %, 90 %, ... of the cost left, as far down as it goes; beside `merging` if there is any."""
    points = []
    most, beside = (1.0, 0.0) if merging is None else (merging.left, merging.loss)
    for step in range(1, CURVE_STEPS):
        left = 1 - step / CURVE_STEPS
        if left > most:
            continue
        saving = (most - left) * whole
        loss = next((h for s, h in zip(curve.saving, curve.loss, strict=True) if s >= saving and h < INFINITE), None)
        if loss is None:
            break
        points.append({"left": round(left, 6), "harm": loss + beside})
    return points


def _layer_curve(menu: Menu, whole: float) -> list[dict[str, float]]:
    return [{"saving": option.saving / whole, "harm": option.loss} for option in menu.pareto()]
