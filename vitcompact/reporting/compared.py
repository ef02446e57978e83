"""Several models beside each other: one table and one plot of quality against speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitcompact.reporting import svg
from vitcompact.reporting.html import Section, table_of
from vitcompact.utils.numbers import UNKNOWN, big, interval, number, percent, size

COLUMNS = ("top-1", "same class", "ms", "times as fast", "MACs", "parameters", "file size")


def rows_of(models: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Name and figures of each model as texts, in the order of `COLUMNS`."""
    rows: list[tuple[str, ...]] = []
    for index, model in enumerate(models):
        same = number(model["agreement"]) if model["agreement"] is not None else number(model["cosine"], 4)
        change = "" if not model["change"] else f" ({model['change']:+.2f})"
        times = f"{model['speedup']:.2f} ({interval(model['speedup_interval'])})" if index else "1.00"
        cells = (percent(model["top1"]) + change, same, f"{model['latency_ms']:.2f}", times)
        rows.append((str(model["name"]), *cells, big(model["macs"]), big(model["params"]), size(model["bytes"])))
    return rows


def table(models: Sequence[Mapping[str, Any]]) -> Section:
    """All models."""
    used = [i for i, row in enumerate(zip(*rows_of(models), strict=True)) if set(row) != {UNKNOWN}]
    head = ("", *COLUMNS)
    rows = [tuple(row[i] for i in used) for row in rows_of(models)]
    text = f"Compared with {models[0]['name']}; intervals are of 95 %."
    return Section("Beside each other", table_of([head[i] for i in used], rows, text=1), text)


def plot(models: Sequence[Mapping[str, Any]]) -> Section | None:
    """Top-1 (or else agreement or cosine with the first) against speed; nothing without scores."""
    measure = next((name for name in ("top1", "agreement", "cosine") if models[0].get(name) is not None), None)
    if measure is None:
        return None
    label = {"top1": "top-1 in percent", "agreement": "same top-1 class", "cosine": "cosine"}[measure]
    points = [(float(model["speedup"]), float(model[measure]), _short(str(model["name"]))) for model in models]
    drawn = svg.scatter(points, "times as fast as the first", most=100.0 if measure == "top1" else 1.0)
    return Section("Quality against speed", drawn, f"Upwards: {label}.")


def _short(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2] or name
