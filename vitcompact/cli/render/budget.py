"""The tables of a budget: expected loss increase against cost, by operator, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from vitcompact.cli.render.common import interval, number, pairs, table, titled
from vitcompact.operators.merge import schedule_text
from vitcompact.reporting.budget import label_of, target_text, unit_text

LOSS = "loss increase"
MEASURES = {"agreement": "same top-1 class, predicted", "cosine": "cosine of features, predicted"}


def budget_tables(budget: Mapping[str, Any]) -> list[RenderableType]:
    """The total curve, token merging alone, each operator's part, and each layer's."""
    merging = [_merging(budget)] if "merging" in budget else []
    return [_curve(budget), *merging, _operators(budget), _layers(budget), *target_rows(budget)]


def target_rows(budget: Mapping[str, Any] | None) -> list[Group]:
    """What was asked of a budget and what is left; nothing where there was none."""
    if budget is None or budget.get("left") is None:
        return []
    return [pairs("Target", [(unit_text(budget), target_text(budget))])]


def _curve(budget: Mapping[str, Any]) -> Group:
    told = budget.get("predicted")
    likeness = [] if told is None else [MEASURES[told["measure"]]]
    found = table(f"{unit_text(budget)} left", *likeness, LOSS, right=(*likeness, LOSS))
    for point in budget["curve"]:
        shown = [] if told is None else [_likeness(told["measure"], point["predicted"])]
        found.add_row(f"{100 * point['left']:.0f} %", *shown, f"{point['harm']:.2e}")
    title = titled("Loss increase by budget (expected squared change of the output)", found)
    return title if told is None else Group(title, Text(predicted_text(budget) or ""))


def predicted_text(budget: Mapping[str, Any]) -> str | None:
    """What the plan's loss means to answers: `same top-1 class, predicted: 0.984 (95 % interval 0.92 to 1.00 ...)`."""
    told = budget.get("predicted")
    if told is None:
        return None
    between = f"95 % interval {interval(told['interval'], 3)} " if told["interval"] else ""
    value = _likeness(told["measure"], told["value"])
    where = f"{between}on {told['num_samples']} held-out images"
    what = f"At {100 * budget['target']:.3g} % of the {unit_text(budget)}"
    return f"{what}, {MEASURES[told['measure']]}: {value} ({where})"


def _likeness(measure: str, value: float) -> str:
    return number(value, 3 if measure == "agreement" else 4)


def _merging(budget: Mapping[str, Any]) -> Group:
    found = table("merged", f"{unit_text(budget)} left", LOSS, right=(LOSS,))
    for point in budget["merging"]["curve"]:
        chosen = " (chosen)" if point["merge_tokens"] == budget["merging"]["merge_tokens"] else ""
        what = schedule_text(point["merge_tokens"]) + chosen
        found.add_row(what, f"{100 * (1 - point['saving']):.1f} %", f"{point['harm']:.2e}")
    return titled("Token merging alone", found)


def _operators(budget: Mapping[str, Any]) -> Group:
    found = table("operator", "layers", LOSS, "share", right=("layers", LOSS, "share"))
    total = max(budget["harm"], 1e-300)
    for entry in sorted(budget["operators"], key=lambda item: -item["harm"]):
        share = f"{100 * entry['harm'] / total:.0f} %"
        found.add_row(entry["op"], str(int(entry["layers"])), f"{entry['harm']:.2e}", share)
    if merging := budget.get("merging"):
        blocks = sum(pairs > 0 for pairs in merging["merge_tokens"])
        found.add_row("merging tokens", str(blocks), f"{merging['harm']:.2e}", f"{100 * merging['harm'] / total:.0f} %")
    return titled(f"By operator, at {100 * budget['target']:.0f} % of the {unit_text(budget)}", found)


def _layers(budget: Mapping[str, Any]) -> Group:
    found = table("layer", "what", "saves", LOSS, right=("saves", LOSS), whole=("layer",), fold=("what",))
    for layer in budget["layers"]:
        what = ", ".join(label_of(operator) for operator in layer["operators"]) or "nothing"
        found.add_row(Text(layer["name"]), what, f"{100 * layer['saving']:.2f} %", f"{layer['harm']:.2e}")
    return titled("Layer by layer", found)
