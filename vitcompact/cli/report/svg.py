"""Small charts as SVG text."""

from __future__ import annotations

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
