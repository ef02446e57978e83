"""Tables and plots of the frontier benchmark's results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frontier_curves import MARKS, SCORE_TITLES, STAGE_TITLES, Curves, Point, at_speed, bootstrap, curves
from frontier_methods import METHODS
from frontier_records import Key
from torch import Tensor


def tables(entries: Mapping[Key, Mapping[str, Any]]) -> str:
    """Markdown: every point, and the methods at equal speed."""
    return "\n\n".join(part for found in curves(entries) for part in (_points_table(found), _marks_table(found)))


def _points_table(found: Curves) -> str:
    names = list(found.original.means)
    titles = " | ".join(SCORE_TITLES[name] for name in names)
    lines = [
        f"### {found.checkpoint}: {STAGE_TITLES[found.stage].lower()}",
        "",
        f"| method | MACs | speed-up (95 %) | {titles} | {SCORE_TITLES[found.main]} to the original (paired 95 %) "
        "| over seeds |",
        "|---|---|---|" + "---|" * (len(names) + 2),
        f"| original | 1.000 | 1 | {_scores(found.original, names)} | | |",
    ]
    for method, points in found.methods.items():
        for point in sorted(points, key=lambda p: -p.target):
            low, high = bootstrap(point.values - found.original.values)
            mean = float((point.values - found.original.values).mean())
            spread = f"{_score(found.main, min(point.seeds))} to {_score(found.main, max(point.seeds))}"
            lines.append(
                f"| {METHODS[method].label} | {point.macs_ratio:.3f} | {point.speedup:.2f} "
                f"({point.interval[0]:.2f} to {point.interval[1]:.2f}) | {_scores(point, names)} | "
                f"{_difference(found.main, mean, low, high)} | {spread if len(point.seeds) > 1 else ''} |"
            )
    lines += ["", *(f"Not reached: {text}." for text in found.unreachable)] if found.unreachable else []
    return "\n".join(lines)


def _marks_table(found: Curves) -> str:
    """Every method against the best of ours, at equal measured speed."""
    lines = [
        f"At equal speed ({SCORE_TITLES[found.main]}, between measured neighbours; in brackets the difference to the "
        "best of vitcompact's at that speed, paired 95 % interval over images):",
        "",
        "| method | " + " | ".join(f"{mark:g}x" for mark in MARKS) + " |",
        "|---|" + "---|" * len(MARKS),
    ]
    rows = {m: [at_speed(found.original, points, mark) for mark in MARKS] for m, points in found.methods.items()}
    own = [row for method, row in rows.items() if METHODS[method].own]
    reached = [[values for row in own if (values := row[i]) is not None] for i in range(len(MARKS))]
    best = [max(each, key=lambda v: float(v.mean())) if each else None for each in reached]
    for method, row in rows.items():
        cells = [_compared(found.main, values, best[i]) for i, values in enumerate(row)]
        lines.append(f"| {METHODS[method].label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _compared(main: str, values: Tensor | None, best: Tensor | None) -> str:
    if values is None:
        return ""
    text = _score(main, float(values.mean()))
    if best is None or values is best:
        return f"**{text}**" if values is best else text
    low, high = bootstrap(values - best)
    return f"{text} ({_difference(main, float((values - best).mean()), low, high)})"


def _percent(name: str) -> bool:
    return name in ("top1", "neighbour")


def _score(name: str, value: float) -> str:
    return f"{100 * value:.2f} %" if _percent(name) else f"{value:.4f}"


def _scores(point: Point, names: list[str]) -> str:
    return " | ".join(_score(name, point.means[name]) for name in names)


def _difference(name: str, mean: float, low: float, high: float) -> str:
    if _percent(name):
        return f"{100 * mean:+.2f}, {100 * low:+.2f} to {100 * high:+.2f}"
    return f"{mean:+.4f}, {low:+.4f} to {high:+.4f}"


def draw(entries: Mapping[Key, Mapping[str, Any]], stem: Path) -> list[Path]:
    """One figure a checkpoint, a panel a stage, as PNG and SVG; returns the files written."""
    from frontier_plot import figure

    written = []
    found = curves(entries)
    for checkpoint in dict.fromkeys(item.checkpoint for item in found):
        drawn = figure([item for item in found if item.checkpoint == checkpoint])
        stem.parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".png", ".svg"):
            path = stem.with_name(f"{stem.name}-{checkpoint}{suffix}")
            drawn.savefig(path, dpi=150, bbox_inches="tight")
            written.append(path)
    return written
