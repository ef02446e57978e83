"""Small charts as SVG text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vitcompact.cli.report.colors import ACCENT, SCALE, is_dark, shade

_CELL, _MARGIN, _TOP = 26, 22, 44

_ANNOTATED_HEADS = 12  # of more, numbers would be too small to read


def matrix(layer: Mapping[str, Any]) -> str:
    """The head x head likeness of one layer; a ring marks each hallucinated head (row) at its parent (column)."""
    values: Sequence[Sequence[float]] = layer["matrix"]
    chosen = {(item["head"], parent) for item in layer["hallucinated"] for parent in item["parents"]}
    hallucinated = {item["head"] for item in layer["hallucinated"]}
    cell = _CELL if len(values) <= _ANNOTATED_HEADS else max(8, _CELL * _ANNOTATED_HEADS // len(values))
    side = cell * len(values)
    parts = [f'<text x="{_MARGIN}" y="14" class="title">{escape(str(layer["name"]))}</text>']
    parts.append(f'<text x="{_MARGIN}" y="{_TOP - 14}" class="small">parent →</text>')
    for row, line in enumerate(values):
        parts.append(_label(_MARGIN - 4, _TOP + cell * row + cell / 2 + 3, row, "end", row in hallucinated))
        parts.append(_label(_MARGIN + cell * row + cell / 2, _TOP - 3, row, "middle", row in hallucinated))
        for column, value in enumerate(line):
            parts.append(_cell(row, column, value, cell, (row, column) in chosen))
    width, height = _MARGIN + side + 6, _TOP + side + 6
    # A title longer than a small matrix is wide must not be cut off.
    return _svg(max(width, 8 * len(str(layer["name"])) + _MARGIN), height, parts)


def bars(rows: Sequence[tuple[str, float | None, str]], *, width: int = 420) -> str:
    """Horizontal bars of (label, share in 0..1, text); a share of None has text only."""
    height, parts = 22, []
    label_width = 20 + 8 * max((len(label) for label, _, _ in rows), default=0)
    for index, (label, share, text) in enumerate(rows):
        y = index * height
        parts.append(f'<text x="{label_width - 8}" y="{y + 15}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<rect x="{label_width}" y="{y + 4}" width="{width}" height="14" fill="{SCALE[1]}"/>')
        if share is not None:
            length = width * min(max(share, 0.0), 1.0)
            parts.append(f'<rect x="{label_width}" y="{y + 4}" width="{length:.1f}" height="14" fill="{SCALE[4]}"/>')
        parts.append(f'<text x="{label_width + width + 8}" y="{y + 15}">{escape(text)}</text>')
    return _svg(label_width + width + 130, height * len(rows), parts)


def curve(points: Sequence[tuple[float, float]], chosen: tuple[float, float], name: str) -> str:
    """Loss increase (on a logarithmic axis) against the share of the cost that is left, with the point chosen.

    Args:
        points: shares left with losses.
        chosen: likewise.
        name: what the cost is.
    """
    width, height, left, top = 460, 220, 64, 14
    shown = [(x, math.log10(max(y, 1e-12))) for x, y in (*points, chosen)]
    low, high = min(y for _, y in shown), max(y for _, y in shown)
    low, high = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
    most = max(x for x, _ in shown)
    least = min(min(x for x, _ in shown), most - 0.05)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + width * (most - x) / (most - least), top + height * (high - y) / (high - low)

    parts = []
    for power in range(low, high + 1):
        _, y = place(most, power)
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" class="grid-line"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">1e{power}</text>')
    for x, _ in shown[:-1]:
        at, _ = place(x, low)
        parts.append(f'<text x="{at:.1f}" y="{top + height + 18}" text-anchor="middle">{100 * x:.0f} %</text>')
    line = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in sorted(shown))
    parts.append(f'<polyline points="{line}" fill="none" stroke="{SCALE[4]}" stroke-width="2"/>')
    x, y = place(*shown[-1])
    tip = f"<title>{100 * chosen[0]:.1f} % of the {escape(name)} left, loss increase {chosen[1]:.2e}</title>"
    parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{ACCENT}">{tip}</circle>')
    parts.append(f'<text x="{left}" y="{top + height + 36}">{escape(name)} left</text>')
    return _svg(left + width + 30, top + height + 44, parts)


def legend() -> str:
    """The colour scale from 0 to 1 and the ring."""
    steps = 24
    parts = [
        f'<rect x="{20 + 6 * i}" y="4" width="6" height="12" fill="{shade(i / (steps - 1))}"/>' for i in range(steps)
    ]
    parts.append('<text x="14" y="14" text-anchor="end">0</text>')
    parts.append(f'<text x="{24 + 6 * steps}" y="14">1</text>')
    x = 70 + 6 * steps
    parts.append(f'<rect x="{x}" y="3" width="13" height="13" fill="none" stroke="{ACCENT}" stroke-width="2.5"/>')
    parts.append(f'<text x="{x + 20}" y="14">hallucinated head (row) and its parent (column)</text>')
    return _svg(x + 330, 20, parts)


def _cell(row: int, column: int, value: float, cell: int, chosen: bool) -> str:
    x, y = _MARGIN + cell * column, _TOP + cell * row
    tip = f"<title>heads {row} and {column}: {value:.3f}</title>"
    parts = [f'<rect x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" fill="{shade(value)}">{tip}</rect>']
    if cell >= _CELL and row != column:
        kind = "cell light" if is_dark(value) else "cell"
        text = f"{value:.2f}".removeprefix("0")
        parts.append(f'<text x="{x + cell / 2 - 0.5}" y="{y + cell / 2 + 3}" class="{kind}">{text}{tip}</text>')
    if chosen:
        ring = f'width="{cell - 2}" height="{cell - 2}" fill="none" stroke="{ACCENT}" stroke-width="2.5"'
        parts.append(f'<rect x="{x + 0.5}" y="{y + 0.5}" {ring}/>')
    return "".join(parts)


def _label(x: float, y: float, head: int, anchor: str, marked: bool) -> str:
    kind = "small marked" if marked else "small"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{head}</text>'


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img">{"".join(parts)}</svg>'
    )
