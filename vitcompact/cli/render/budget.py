"""The tables of a budget: expected loss increase against cost, by operator, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from vitcompact.cli.render.common import table, titled

UNITS = {"macs": "MACs", "params": "parameters", "latency": "time"}
LOSS = "loss increase"


def budget_tables(budget: Mapping[str, Any]) -> list[RenderableType]:
    """The total curve, token merging alone, each operator's part, and each layer's."""
    merging = [_merging(budget)] if "merging" in budget else []
    return [_curve(budget), *merging, _operators(budget), _layers(budget)]


def merging_text(merge_tokens: Sequence[int]) -> str:
    """A schedule of merging in a few words."""
    low, high = min(merge_tokens), max(merge_tokens)
    return f"{sum(merge_tokens)} pairs of tokens, {low if low == high else f'{low} to {high}'} per block"


def describe(operator: Mapping[str, Any]) -> str:
    """One operator of a plan in a few words."""
    if operator["op"] == "hallucinate":
        return f"hallucinate {len(operator['hallucinated'])} of {operator['num_heads']}"
    size = next((f"{key} {operator[key]}" for key in ("qk_dim", "v_dim", "hidden", "rank") if key in operator), "")
    return f"{operator['op']} {size}"


def _curve(budget: Mapping[str, Any]) -> Group:
    found = table(f"{UNITS[budget['unit']]} left", LOSS, right=(LOSS,))
    for point in budget["curve"]:
        found.add_row(f"{100 * point['left']:.0f} %", f"{point['harm']:.2e}")
    return titled("Loss increase by budget (expected squared change of the output)", found)


def _merging(budget: Mapping[str, Any]) -> Group:
    found = table("merged", f"{UNITS[budget['unit']]} left", LOSS, right=(LOSS,))
    for point in budget["merging"]["curve"]:
        chosen = " (chosen)" if point["merge_tokens"] == budget["merging"]["merge_tokens"] else ""
        what = merging_text(point["merge_tokens"]) + chosen
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
    return titled(f"By operator, at {100 * budget['target']:.0f} % of the {UNITS[budget['unit']]}", found)


def _layers(budget: Mapping[str, Any]) -> Group:
    found = table("layer", "what", "saves", LOSS, right=("saves", LOSS), whole=("layer",), fold=("what",))
    for layer in budget["layers"]:
        what = ", ".join(describe(operator) for operator in layer["operators"]) or "nothing"
        found.add_row(Text(layer["name"]), what, f"{100 * layer['saving']:.2f} %", f"{layer['harm']:.2e}")
    return titled("Layer by layer", found)
