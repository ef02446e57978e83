"""The table of `compact`: before, after, change, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from vitcompact.cli.progress import duration
from vitcompact.cli.render.common import table, titled
from vitcompact.cli.spoken import flags
from vitcompact.reporting.measures import measured_of, rows_of


def compact_tables(document: Mapping[str, Any]) -> list[RenderableType]:
    """What was done in which time, what became of the model, and which target was given up."""
    steps = table("step", "time", "lost", "", right=("time", "lost"))
    for step in document["steps"]:
        lost = "" if step["drop"] is None else f"{round(step['drop'], 2) + 0.0:.2f} points"
        steps.add_row(step["name"], duration(step["seconds"]), lost, step["note"])
    columns = ("before", "after", "change", "95 % interval")
    found = table("", *columns, right=columns)
    for row in rows_of(measured(document)):
        found.add_row(*row.cells)
    title = f"Before and after, on {document['num_samples']} images"
    parts: list[RenderableType] = [titled("Steps", steps), titled(title, found)]
    for name, told in document["reached"]["gave_up"].items():
        parts.append(Text(f"{flags().get(name, name)} was given up: {told}", style="bold"))
    return parts


def measured(document: Mapping[str, Any]) -> dict[str, Any]:
    """What `compact` measured, as `reporting.measures` takes it."""
    reached, labelled = document["reached"], document["after"]["top1"] is not None
    lost = reached["drop_interval"]
    gained = None if lost is None else [-lost[1], -lost[0]]
    shares = None if labelled or gained is None or document["after"]["agreement"] is None else gained
    return measured_of(
        (document["before"], document["after"]),
        speedup=reached["speedup"],
        speedup_interval=reached["speedup_interval"],
        top1_interval=gained if labelled else None,
        agreement_interval=None if shares is None else [1 + end / 100 for end in shares],
        batch_size=document["batch_size"],
        backend=document.get("backend"),
        dtype=document.get("dtype"),
        num_samples=document["num_samples"],
    )
