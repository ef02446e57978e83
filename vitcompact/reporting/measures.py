"""Before and after of a model: the figures on top of a page, and the rows of tables and model cards.

What is measured is a mapping with `before` and `after` (each with any of `top1`, `agreement`, `cosine`, `latency_ms`,
`macs`, `params`, `bytes`), and where known `speedup`, `speedup_interval`, `top1_interval` (of the change, in points),
`agreement_interval`, `batch_size`, `backend`, `dtype` and `num_samples`. `predicted` marks costs that are only
expected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from vitcompact.options.shared import BACKENDS
from vitcompact.reporting.html import Section, table_of
from vitcompact.utils.numbers import big, change, interval, number, percent, size

COLUMNS = ("before", "after", "change", "95 % interval")


@dataclass(frozen=True)
class Row:
    """One measure as texts; `key` is its name among those above."""

    key: str
    name: str
    before: str
    after: str
    change: str = ""
    interval: str = ""

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        """In the order of a table: name, then `COLUMNS`."""
        return self.name, self.before, self.after, self.change, self.interval


def rows_of(measured: Mapping[str, Any]) -> list[Row]:
    """A row for everything that was measured of the model; its counterpart may be unknown."""
    before, after = measured["before"], measured["after"]
    return [*_quality(before, after, measured), *_speed(before, after, measured), *_sizes(before, after)]


def figures(measured: Mapping[str, Any]) -> Section:
    """The four figures and the file size, as cards."""
    rows = {row.key: row for row in rows_of(measured)}
    quality = next((rows[key] for key in ("top1", "agreement", "cosine") if key in rows), None)
    shown = [quality, *(rows.get(key) for key in ("latency_ms", "macs", "params", "bytes"))]
    return Section("", f'<div class="cards">{"".join(_card(row) for row in shown if row is not None)}</div>')


def table(measured: Mapping[str, Any]) -> Section:
    """All rows."""
    images = measured.get("num_samples")
    seen = f"Compared on {images} images; intervals are of 95 %." if images else ""
    if measured.get("predicted"):
        seen = "The cost that is expected of the folded model."
    cells = [row.cells for row in rows_of(measured)]
    used = [i for i in range(5) if i < 3 or any(row[i] for row in cells)]
    head = ("", *COLUMNS)
    rows = [tuple(row[i] for i in used) for row in cells]
    return Section("Before and after", table_of([head[i] for i in used], rows, text=1), seen)


def _quality(before: Mapping[str, Any], after: Mapping[str, Any], measured: Mapping[str, Any]) -> list[Row]:
    rows = []
    if after.get("top1") is not None:
        known = before.get("top1") is not None
        points = f"{after['top1'] - before['top1']:+.2f} points" if known else ""
        within = interval(measured.get("top1_interval"), sign=True)
        rows.append(
            Row("top1", "top-1", _or_blank(before.get("top1"), percent), percent(after["top1"]), points, within)
        )
    if after.get("agreement") is not None:
        within = interval(measured.get("agreement_interval"), 3)
        rows.append(Row("agreement", "same top-1 class", "", number(after["agreement"]), "", within))
    if after.get("cosine") is not None:
        rows.append(Row("cosine", "cosine of the outputs", "", number(after["cosine"], 4)))
    return rows


def _speed(before: Mapping[str, Any], after: Mapping[str, Any], measured: Mapping[str, Any]) -> list[Row]:
    if after.get("latency_ms") is None:
        return []
    images = measured.get("batch_size")
    name = "milliseconds" if not images else f"ms for {images} image{'s' if images > 1 else ''}"
    first, last = (_or_blank(side.get("latency_ms"), "{:.2f}".format) for side in (before, after))
    speedup = measured.get("speedup")
    name += within(measured)
    times = "" if speedup is None else f"{speedup:.2f} times as fast"
    return [Row("latency_ms", name, first, last, times, interval(measured.get("speedup_interval")))]


def _sizes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Row]:
    rows = []
    for key, name, text in (
        ("macs", "MACs per image", big),
        ("params", "parameters", big),
        ("bytes", "file size", size),
    ):
        first, last = before.get(key), after.get(key)
        if first and last:
            rows.append(Row(key, name, text(first), text(last), change(first, last)))
        elif last:
            rows.append(Row(key, name, "", text(last)))
    return rows


def _or_blank(value: float | None, text: Any) -> str:
    return "" if value is None else str(text(value))


def _card(row: Row) -> str:
    parts = [
        f'<div class="card"><div class="what">{escape(row.name)}</div><div class="value">{escape(row.after)}</div>'
    ]
    if row.change:
        parts.append(f'<span class="change">{escape(row.change)}</span>')
    if row.before:
        parts.append(f'<span class="from">from {escape(row.before)}</span>')
    if row.interval:
        parts.append(f'<span class="within">95 %: {escape(row.interval)}</span>')
    return "".join([*parts, "</div>"])


def within(timed: Mapping[str, Any]) -> str:
    """Words after a time that was not measured in PyTorch as it is, in float32: ` in ONNX Runtime`, ` in bfloat16`."""
    backend, dtype = timed.get("backend"), timed.get("dtype")
    where = [BACKENDS[backend]] if isinstance(backend, str) and backend != "torch" and backend in BACKENDS else []
    where += [dtype] if isinstance(dtype, str) else []
    return f" in {', '.join(where)}" if where else ""


def measured_of(sides: Sequence[Mapping[str, Any]], **known: Any) -> dict[str, Any]:
    """What is measured, of the two models' own figures and whatever else is known."""
    before, after = sides
    return {"before": dict(before), "after": dict(after), **{k: v for k, v in known.items() if v is not None}}
