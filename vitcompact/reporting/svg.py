"""Small charts as SVG text, coloured by the page's style sheet so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_CELL, _MARGIN, _TOP = 26, 22, 44
_WIDTH, _HEIGHT, _LEFT, _ABOVE = 330, 190, 40, 12

ANNOTATED_HEADS = 12
"""Of more heads, numbers in the cells would be too small to read."""

Point = tuple[float, float]


def matrix(layer: Mapping[str, Any]) -> str:
    """The head x head likeness of one layer; a ring marks each hallucinated head (row) at its parent (column)."""
    values: Sequence[Sequence[float]] = layer["matrix"]
    chosen = {(item["head"], parent) for item in layer["hallucinated"] for parent in item["parents"]}
    hallucinated = {item["head"] for item in layer["hallucinated"]}
    cell = _CELL if len(values) <= ANNOTATED_HEADS else max(8, _CELL * ANNOTATED_HEADS // len(values))
    step = max(1, math.ceil(13 / cell))  # of narrow cells not every one has room for its number
    side = cell * len(values)
    parts = [f'<text x="{_MARGIN}" y="14" class="title">{escape(str(layer["name"]))}</text>']
    parts.append(f'<text x="{_MARGIN}" y="{_TOP - 15}" class="small">{"parent →" if chosen else "head"}</text>')
    for row, line in enumerate(values):
        if row % step == 0:
            parts.append(_label(_MARGIN - 4, _TOP + cell * row + cell / 2 + 3, row, "end", row in hallucinated))
            parts.append(_label(_MARGIN + cell * row + cell / 2, _TOP - 3, row, "middle", row in hallucinated))
        parts += [_cell(row, column, value, cell) for column, value in enumerate(line)]
    for row, column in sorted(chosen):
        box = f'width="{cell - 2}" height="{cell - 2}"'
        x, y = _MARGIN + cell * column + 0.5, _TOP + cell * row + 0.5
        parts.append(f'<rect x="{x}" y="{y}" {box} class="ring"/>')
    # A title longer than a small matrix is wide must not be cut off.
    return svg(max(_MARGIN + side + 6, 7 * len(str(layer["name"])) + _MARGIN), _TOP + side + 6, parts)


def matrix_legend() -> str:
    """The scale from 0 to 1, and the ring."""
    parts = ['<text x="10" y="14" text-anchor="end">0</text>', '<text x="118" y="14">1</text>']
    parts += [
        f'<rect x="{14 + 5 * i}" y="4" width="5" height="12" class="heat" fill-opacity="{i / 19:.2f}"/>'
        for i in range(20)
    ]
    parts.append('<rect x="134" y="3" width="13" height="13" class="ring"/>')
    parts.append('<text x="153" y="14">hallucinated (row), parent (column)</text>')
    return svg(390, 20, parts)


def curve(points: Sequence[Point], chosen: Point, name: str) -> str:
    """Loss increase (on a logarithmic axis) against the share of the cost that is left, with the point chosen.

    Args:
        points: shares left with losses.
        chosen: likewise.
        name: what the cost is.
    """
    plane = Plane.around([(x, max(y, 1e-12)) for x, y in (*points, chosen)], falling=True)
    parts = plane.frame(f"{name} left", _percents(plane))
    parts.append(plane.line(sorted(points, reverse=True), "curve"))  # a plan of a measured time lies beside it
    x, y = plane.place(*chosen)
    tip = f"<title>{100 * chosen[0]:.1f} % of the {escape(name)} left, loss increase {chosen[1]:.2e}</title>"
    parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" class="dot">{tip}</circle>')
    right = x > _LEFT + _WIDTH * 0.55
    # The loss rises to the right: right of the dot there is room below the line, and left of it above.
    height = max(y - 9, 12) if right else min(y + 16, _ABOVE + _HEIGHT - 4)
    at = f'x="{x - 11 if right else x + 9:.1f}" y="{height:.1f}" text-anchor="{"end" if right else "start"}"'
    parts.append(f'<text {at} class="marked">the plan: {100 * chosen[0]:.1f} %</text>')
    return plane.drawn(parts)


def spectra(lines: Sequence[tuple[str, Sequence[Point], Point]], name: str) -> str:
    """Energy lost (logarithmic) against the share of directions kept, a line for each layer and a dot for its rank.

    Args:
        lines: names with points and the point of the rank; dots are drawn where that is below all directions.
        name: of the horizontal axis.
    """
    points = [(x, max(y, 1e-9)) for _, line, _ in lines for x, y in line]
    plane = Plane.around(points)
    parts = plane.frame(name, _percents(plane))
    for index, (label, line, (rank, lost)) in enumerate(lines):
        shade = 0.25 + 0.75 * index / max(len(lines) - 1, 1)
        drawn = plane.line([(x, max(y, 1e-9)) for x, y in line], "thin s0", f' stroke-opacity="{shade:.2f}"')
        parts.append(f"<g><title>{escape(label)}</title>{drawn}")
        if rank < 1:
            x, y = plane.place(rank, max(lost, 1e-9))
            tip = f"<title>{escape(label)}: {100 * lost:.3g} % lost</title>"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="dot">{tip}</circle>')
        parts.append("</g>")
    return plane.drawn(parts)


def scatter(points: Sequence[tuple[float, float, str]], across: str, most: float) -> str:
    """Named points on linear axes; the first is drawn in the accent colour.

    Args:
        points: x, y and name.
        across: of the horizontal axis.
        most: the largest y there can be.
    """
    plane = Plane.padded([(x, y) for x, y, _ in points])
    low, high = plane.up
    plane.up = low, min(high, most + 0.1 * (high - low))
    parts = plane.frame(across, [(x, text) for text, x in _round_values(*plane.across)])
    taken: list[tuple[float, float]] = []
    for index, (x, y, name) in enumerate(points):
        at, down = plane.place(x, y)
        end = at > _LEFT + _WIDTH * 0.55
        low = down - 8
        while any(abs(low - other) < 12 and abs(at - across) < 150 for across, other in taken):
            low += 13
        taken.append((at, low))
        kind = "dot" if index == 0 else f"s{(index - 1) % 8}"
        parts.append(f'<circle cx="{at:.1f}" cy="{down:.1f}" r="6" class="{kind}"/>')
        place = f'x="{at - 9 if end else at + 9:.1f}" y="{low:.1f}" text-anchor="{"end" if end else "start"}"'
        parts.append(f"<text {place}>{escape(name)}</text>")
    return plane.drawn(parts)


class Plane:
    """The area of a chart.

    Args:
        across, up: limits of the axes; those of a logarithmic axis are powers of ten.
        log: whether the vertical axis is logarithmic.
        falling: whether the horizontal axis goes from large to small.
    """

    def __init__(self, across: Point, up: Point, *, log: bool = True, falling: bool = False) -> None:
        self.across, self.up, self.log, self.falling = across, up, log, falling

    @classmethod
    def around(cls, points: Sequence[Point], falling: bool = False) -> Plane:
        """Limits of a logarithmic chart that hold all points."""
        xs, ys = zip(*points, strict=True)
        low = math.floor(math.log10(min(ys)))
        high = max(math.ceil(math.log10(max(ys))), low + 1)
        return cls((min(*xs, max(xs) - 0.05), max(xs)), (low, high), falling=falling)

    @classmethod
    def padded(cls, points: Sequence[Point]) -> Plane:
        """Limits of a linear chart with some room around the points, and a fiftieth of them where all are equal."""
        limits = []
        for values in zip(*points, strict=True):
            span = max(max(values) - min(values), 0.02 * max(abs(max(values)), abs(min(values)))) or 1.0
            middle = (max(values) + min(values)) / 2
            limits.append((middle - 0.62 * span, middle + 0.62 * span))
        return cls(*limits, log=False)

    def place(self, x: float, y: float) -> Point:
        """Where a point is drawn."""
        share = (x - self.across[0]) / (self.across[1] - self.across[0])
        height = ((math.log10(max(y, 1e-12)) if self.log else y) - self.up[0]) / (self.up[1] - self.up[0])
        return _LEFT + _WIDTH * (1 - share if self.falling else share), _ABOVE + _HEIGHT * (1 - height)

    def line(self, points: Sequence[Point], kind: str, more: str = "") -> str:
        """A line through points."""
        text = " ".join("{:.1f},{:.1f}".format(*self.place(x, y)) for x, y in points)
        return f'<polyline points="{text}" class="{kind}"{more}/>'

    def frame(self, name: str, marks: Sequence[tuple[float, str]]) -> list[str]:
        """Grid lines with their values, marks below, and what the horizontal axis is."""
        parts = []
        bottom = _ABOVE + _HEIGHT
        for label, y in self._levels():
            parts.append(f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y:.1f}" y2="{y:.1f}" class="axis"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
        for x, label in marks:
            at, _ = self.place(x, 1.0)
            parts.append(f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{label}</text>')
        parts.append(f'<text x="{_LEFT}" y="{bottom + 33}" class="small">{escape(name)} →</text>')
        return parts

    def _levels(self) -> list[tuple[str, float]]:
        low, high = self.up
        if self.log:
            step = math.ceil((high - low) / 6)
            values = [(f"1e{power}", float(power)) for power in range(int(low), int(high) + 1, step)]
        else:
            values = _round_values(low, high)
        return [(label, _ABOVE + _HEIGHT * (1 - (value - low) / (high - low))) for label, value in values]

    def drawn(self, parts: Sequence[str]) -> str:
        """The chart."""
        return svg(_LEFT + _WIDTH + 20, _ABOVE + _HEIGHT + 40, parts, "chart")


def svg(width: float, height: float, parts: Sequence[str], kind: str = "") -> str:
    """An SVG element; one of kind `chart` is as wide as there is room."""
    named = f' class="{kind}"' if kind else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg"{named} width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img">{"".join(parts)}</svg>'
    )


def _round_values(low: float, high: float) -> list[tuple[str, float]]:
    """Three to seven round numbers of an axis with their texts."""
    power = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = next(step for step in (5 * power, 2 * power, power) if (high - low) / step >= 3)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(f"{i * step:.{places}f}", i * step) for i in range(first, last + 1)]


def _percents(plane: Plane) -> list[tuple[float, str]]:
    """Round shares of the horizontal axis."""
    low, high = plane.across
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25) if (high - low) / step <= 7 or step == 0.25)
    first = math.ceil(low / step - 1e-9)
    return [(i * step, f"{100 * i * step:.0f} %") for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _cell(row: int, column: int, value: float, cell: int) -> str:
    x, y = _MARGIN + cell * column, _TOP + cell * row
    level = min(max(value, 0.0), 1.0)
    box = f'x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" class="heat" fill-opacity="{level:.2f}"'
    if cell < _CELL:
        return f"<rect {box}/>"
    tip = f"<title>heads {row} and {column}: {value:.3f}</title>"
    if row == column:
        return f"<rect {box}>{tip}</rect>"
    text = f"{value:.2f}".replace("0.", ".", 1)
    place = f'x="{x + cell / 2 - 0.5}" y="{y + cell / 2 + 3}" class="cell{" light" if level > 0.55 else ""}"'
    return f"<rect {box}>{tip}</rect><text {place}>{text}{tip}</text>"


def _label(x: float, y: float, head: int, anchor: str, marked: bool) -> str:
    kind = "small marked" if marked else "small"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{head}</text>'
