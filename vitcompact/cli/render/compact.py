"""The table of `compact`: before, after, change, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from vitcompact.cli.progress import duration
from vitcompact.cli.render.common import big, change, interval, number, percent, size, table, titled
from vitcompact.cli.spoken import flags


def compact_tables(document: Mapping[str, Any]) -> list[RenderableType]:
    """What was done in which time, what became of the model, and which target was given up."""
    steps = table("step", "time", "lost", "", right=("time", "lost"))
    for step in document["steps"]:
        lost = "" if step["drop"] is None else f"{step['drop']:.2f} points"
        steps.add_row(step["name"], duration(step["seconds"]), lost, step["note"])
    columns = ("before", "after", "change", "95 % interval")
    found = table("", *columns, right=columns)
    for row in rows_of(document):
        found.add_row(*row)
    title = f"Before and after, on {document['num_samples']} images"
    parts: list[RenderableType] = [titled("Steps", steps), titled(title, found)]
    for name, told in document["reached"]["gave_up"].items():
        parts.append(Text(f"{flags().get(name, name)} was given up: {told}", style="bold"))
    return parts


def rows_of(document: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Measure, before, after, change and interval, as texts."""
    before, after, reached = document["before"], document["after"], document["reached"]
    lost = reached["drop_interval"]
    gained = None if lost is None else [-lost[1], -lost[0]]
    rows = []
    if after["top1"] is not None:
        points = f"{after['top1'] - before['top1']:+.2f} points"
        rows.append(("top-1", percent(before["top1"]), percent(after["top1"]), points, interval(gained, sign=True)))
    if after["agreement"] is not None:
        shares = None if after["top1"] is not None or gained is None else [1 + end / 100 for end in gained]
        rows.append(("same top-1 class", "", number(after["agreement"]), "", interval(shares, 3)))
    rows.append(("cosine of the outputs", "", number(after["cosine"], 4), "", ""))
    times = f"{reached['speedup']:.2f} times as fast"
    label = f"ms for {document['batch_size']} images"
    shown = (f"{before['latency_ms']:.2f}", f"{after['latency_ms']:.2f}")
    rows.append((label, *shown, times, interval(reached["speedup_interval"])))
    for key, name, text in (
        ("macs", "MACs per image", big),
        ("params", "parameters", big),
        ("bytes", "file size", size),
    ):
        if before.get(key):
            rows.append((name, text(before[key]), text(after[key]), change(before[key], after[key]), ""))
    return rows
