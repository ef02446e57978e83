"""The page of `compare`: one table and one plot of quality against speed, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vitcompact.cli.render.compare import COLUMNS, rows_of
from vitcompact.cli.report.colors import ACCENT, SCALE
from vitcompact.cli.report.html import page, table_of


def draw_compared(models: Sequence[Mapping[str, Any]]) -> str:
    """A page of what `compare` found."""
    title = f"vitcompact: {len(models)} models beside each other"
    body = [
        f"<h1>{escape(title)}</h1><p>Compared with {escape(str(models[0]['name']))}; intervals are of 95 %.</p>",
        f'<div class="wide">{table_of(("", *COLUMNS), rows_of(models), text=1)}</div>',
        _plot(models),
    ]
    return page(title, body)


def _plot(models: Sequence[Mapping[str, Any]]) -> str:
    """Top-1 (or else agreement or cosine with the first) against speed; nothing without scores."""
    measure = next((name for name in ("top1", "agreement", "cosine") if models[0][name] is not None), None)
    if measure is None:
        return ""
    label = {"top1": "top-1, %", "agreement": "same top-1 class", "cosine": "cosine"}[measure]
    points = [(float(model["speedup"]), float(model[measure]), str(model["name"])) for model in models]
    width, height, left, top = 520, 260, 64, 20
    speeds, scores = _range([speed for speed, _, _ in points]), _range([score for _, score, _ in points])
    lows, highs = zip(speeds, scores, strict=True)
    parts = [
        f'<line x1="{left}" x2="{left + width}" y1="{top + height}" y2="{top + height}" class="grid-line"/>',
        f'<line x1="{left}" x2="{left}" y1="{top}" y2="{top + height}" class="grid-line"/>',
    ]
    for share in (0.0, 0.5, 1.0):
        x, y = left + width * share, top + height * (1 - share)
        speed, score = (low + (high - low) * share for low, high in zip(lows, highs, strict=True))
        parts.append(f'<text x="{x:.0f}" y="{top + height + 18}" text-anchor="middle">{speed:.2f}</text>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.0f}" text-anchor="end">{score:.4g}</text>')
    for index, (speed, score, name) in enumerate(points):
        x = left + width * (speed - lows[0]) / (highs[0] - lows[0])
        y = top + height * (1 - (score - lows[1]) / (highs[1] - lows[1]))
        colour = ACCENT if index == 0 else SCALE[4]
        anchor = "end" if x > left + width * 0.6 else "start"
        shift = -10 if anchor == "end" else 10
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{colour}"/>')
        parts.append(f'<text x="{x + shift:.1f}" y="{y - 8:.1f}" text-anchor="{anchor}">{escape(_short(name))}</text>')
    parts.append(f'<text x="{left}" y="{top + height + 38}">times as fast as the first; upwards: {label}</text>')
    size = f'width="{left + width + 40}" height="{top + height + 48}"'
    box = f'viewBox="0 0 {left + width + 40} {top + height + 48}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {box} role="img">{"".join(parts)}</svg>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis with some room around the values."""
    room = 0.1 * (max(values) - min(values)) or 0.05 * abs(max(values)) or 1.0
    return min(values) - room, max(values) + room


def _short(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2] or name
