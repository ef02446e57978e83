"""The table of `compare`: a row for each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType

from vitcompact.cli.render.common import big, interval, number, percent, size, table, titled

COLUMNS = ("top-1", "same class", "ms", "times as fast", "MACs", "parameters", "file size")


def compare_tables(document: Mapping[str, Any]) -> list[RenderableType]:
    """Scores, speed and size of all models, the first of which is what the others are compared with."""
    found = table("", *COLUMNS, right=COLUMNS, fold=("",))
    for name, *cells in rows_of(document["models"]):
        found.add_row(name, *cells)
    return [titled(f"Compared with {document['models'][0]['name']}", found)]


def rows_of(models: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Name and figures of each model as texts, in the order of `COLUMNS`."""
    rows: list[tuple[str, ...]] = []
    for model in models:
        same = number(model["agreement"]) if model["agreement"] is not None else number(model["cosine"], 4)
        change = "" if not model["change"] else f" ({model['change']:+.2f})"
        times = f"{model['speedup']:.2f} ({interval(model['speedup_interval'])})"
        cells = (percent(model["top1"]) + change, same, f"{model['latency_ms']:.2f}", times)
        rows.append((str(model["name"]), *cells, big(model["macs"]), big(model["params"]), size(model["bytes"])))
    return rows
