"""What a budget bought: loss against cost with the point chosen, and which block saves what by which operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vitcompact.operators import MODEL_OPERATORS, OPERATORS, describe
from vitcompact.operators.merge import schedule_text
from vitcompact.reporting import svg
from vitcompact.reporting.html import Section, legend, table_of
from vitcompact.reporting.measures import within
from vitcompact.utils.numbers import big

_UNITS = {"macs": "MACs", "params": "parameters", "latency": "time"}


def unit_text(budget: Mapping[str, Any]) -> str:
    """What a budget counts in, such as `MACs`, `time` or `time in ONNX Runtime`."""
    return _UNITS[budget["unit"]] + within(budget)


def target_text(budget: Mapping[str, Any]) -> str:
    """What was asked for and what is left: `80 % asked for, 79.6 % left (95 % interval 78.9 % to 80.4 %)`."""
    interval = budget.get("interval")
    between = f" (95 % interval {100 * interval[0]:.1f} % to {100 * interval[1]:.1f} %)" if interval else ""
    return f"{100 * budget['target']:.3g} % asked for, {100 * budget['left']:.1f} % left{between}"


def label_of(operator: Mapping[str, Any]) -> str:
    """One operator of a plan in a few words."""
    return f"{operator['op']} {describe(OPERATORS[operator['op']], operator, short=True)}"


def loss_curve(budget: Mapping[str, Any]) -> Section:
    """Loss against cost, with the plan as a dot."""
    unit = unit_text(budget)
    chosen = (budget["target"] if budget.get("left") is None else budget["left"], budget["harm"])
    points = [(point["left"], point["harm"]) for point in budget["curve"]]
    told = f"{target_text(budget)}. " if budget.get("left") else ""
    text = f"{told}The least loss increase (expected squared change of the output) at every cost; the dot is the plan."
    return Section(f"Loss against budget: {unit}", svg.curve(points, chosen, unit), text)


def savings(found: Mapping[str, Any]) -> Section | None:
    """Per block who saved what, as stacked bars.

    Args:
        found: `whole` MACs of the model, those `saved`, and `blocks`, each with its `name` and the MACs `saved` by
            operator.
    """
    blocks, whole = found["blocks"], max(found["whole"], 1)
    order = [*OPERATORS, *(operator.name for operator in MODEL_OPERATORS)]
    names = [name for name in order if any(block["saved"].get(name) for block in blocks)]
    if not names:
        return None
    most = max(sum(max(block["saved"].get(name, 0), 0) for name in names) for block in blocks)
    rows = "".join(_bar(block, names, most, whole) for block in blocks)
    total = found["saved"]
    text = f"MACs that each block saves, in percent of the whole model's: {100 * total / whole:.1f} % in all."
    return Section("Who saves what", f'{legend(names)}<div class="bars">{rows}</div>', text)


def layers(plan: Sequence[Mapping[str, Any]], merge_tokens: Sequence[int], budget: Mapping[str, Any] | None) -> Section:
    """The plan, layer by layer, with what a budget expects of each."""
    expected = {layer["name"]: layer for layer in (budget or {}).get("layers", ())}
    names = list(expected) or [layer["name"] for layer in plan]
    planned = {layer["name"]: layer["operators"] for layer in plan}
    rows: list[tuple[str, ...]] = []
    for name in names:
        what = ", ".join(map(label_of, planned.get(name, expected.get(name, {}).get("operators", ())))) or "nothing"
        cells: tuple[str, ...] = (str(name), what)
        if expected:
            layer = expected.get(name, {"saving": 0.0, "harm": 0.0})
            cells += (f"{100 * layer['saving']:.2f} %", f"{layer['harm']:.2e}")
        rows.append(cells)
    if any(merge_tokens):
        cells = ("blocks", f"merge {schedule_text(merge_tokens)}")
        merging = (budget or {}).get("merging")
        if expected:
            cells += (f"{100 * merging['saving']:.2f} %", f"{merging['harm']:.2e}") if merging else ("", "")
        rows.append(cells)
    head = ("layer", "what", "saves", "loss increase") if expected else ("layer", "what")
    body = f"<details><summary>{len(rows)} layers</summary>{table_of(head, rows, text=2)}</details>"
    return Section("The plan, layer by layer", body)


def _bar(block: Mapping[str, Any], names: Sequence[str], most: float, whole: float) -> str:
    parts, total = [], sum(block["saved"].values())
    for index, name in enumerate(names):
        saved = block["saved"].get(name, 0)
        if saved > 0:
            tip = escape(f"{name}: {big(saved)} MACs, {100 * saved / whole:.2f} %")
            parts.append(f'<i class="s{index}" style="width:{100 * saved / most:.2f}%" title="{tip}"></i>')
    name = f"<code>{escape(str(block['name']))}</code>"
    return f'{name}<span class="bar">{"".join(parts)}</span><span class="total">{100 * total / whole:.2f} %</span>'
