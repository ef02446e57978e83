"""The tables of `convert`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from vitcompact.cli.render.budget import target_rows
from vitcompact.cli.render.common import cost_table, interval, number, pairs, skipped_tables, table, titled
from vitcompact.operators import OPERATORS, describe
from vitcompact.operators.merge import schedule_text


def convert_tables(document: Mapping[str, Any]) -> list[RenderableType]:
    """Cost, fidelity, and what was left unchanged."""
    parts: list[RenderableType] = [_cost(document)]
    parts += target_rows(document.get("budget"))
    if merging := document["plan"].get("merge_tokens"):
        parts.append(pairs("Token merging", [("schedule", schedule_text(merging))]))
    fidelity = document.get("fidelity")
    if fidelity:
        shown = (("agreement", "same top-1 class"), ("cosine", "cosine of the outputs"))
        rows = [(label, number(fidelity[key])) for key, label in shown if fidelity[key] is not None]
        if within := interval(fidelity.get("agreement_interval"), 3):
            rows[0] = (rows[0][0], f"{rows[0][1]} (95 % interval {within})")
        seen = fidelity.get("num_samples")
        what = f"{seen} held-out calibration images" if seen else "held-out calibration images"
        parts.append(pairs(f"Compared with the original, on {what}", rows))
    return [*parts, *skipped_tables(document["plan"].get("skipped", ()))]


def targets_table(documents: Sequence[Mapping[str, Any]]) -> Group:
    """What several targets leave and keep, side by side."""
    score = "agreement" if (documents[0].get("fidelity") or {}).get("agreement") is not None else "cosine"
    label = {"agreement": "same top-1 class", "cosine": "cosine"}[score]
    numbers = ("asked for", "MACs", "parameters", label)
    found = table(*numbers, "written to", right=numbers, fold=("written to",))
    for document in documents:
        parts = [f"{document[name]['after'] / document[name]['before']:.3f}" for name in ("macs", "params")]
        fidelity = document.get("fidelity") or {}
        found.add_row(
            f"{document['budget']['target']:g}", *parts, number(fidelity.get(score)), Text(str(document["out"]))
        )
    return titled("Shares that are left, and likeness to the original on held-out calibration images", found)


_JUDGED = {"max_drop": "points of top-1 lost", "min_agreement": "same top-1 class", "min_cosine": "cosine"}


def within_table(within: Mapping[str, Any]) -> Group:
    """The budgets that were tried for a limit, and which of them hold it."""
    label = _JUDGED[within["limit"]]
    found = table("MACs left", label, "95 % interval", "", right=("MACs left", label, "95 % interval"))
    for each in within["tried"]:
        told = "holds" if each["holds"] else "missed" if each["score"] is not None else "out of reach"
        between = interval(each["interval"], 3) or ""
        found.add_row(f"{each['share']:.3f}", number(each["score"]), between, told)
    return titled(f"{label}: {within['asked']:g} asked for, judged on {within['num_samples']} images", found)


def plan_tables(document: Mapping[str, Any]) -> list[RenderableType]:
    """What would be done to which layer, and what would be left unchanged."""
    return [
        _plan(document["plan"]),
        *skipped_tables(document["plan"].get("skipped", ())),
        _cost(document),
        *target_rows(document.get("budget")),
    ]


def _cost(document: Mapping[str, Any]) -> Group:
    before, after = (
        {name: document[name][side] for name in ("params", "macs", "bytes") if name in document}
        for side in ("before", "after")
    )
    return cost_table("Cost (of the folded model)", before, after)


def _plan(plan: Mapping[str, Any]) -> Group:
    found = table("layer", "operator", "what", whole=("layer", "operator"), fold=("what",))
    for layer in plan["layers"]:
        for operator in layer["operators"]:
            found.add_row(Text(layer["name"]), operator["op"], Text(describe(OPERATORS[operator["op"]], operator)))
    if merging := plan.get("merge_tokens"):
        found.add_row("blocks", "merge tokens", schedule_text(merging))
    return titled("Plan", found)
