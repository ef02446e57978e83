"""Tables and plots of the frontier benchmark's results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from frontier_methods import METHODS
from frontier_records import Key
from torch import Tensor

MARKS = (1.1, 1.25, 1.5, 1.65)
"""Speed-ups at which methods are compared."""

MAX_GAP = 1.3
"""Neighbours further apart in speed than this factor say nothing of what lies between them."""

RESAMPLES = 2000
STAGE_TITLES = {"raw": "Straight after the method", "finetuned": "After label-free fine-tuning"}
SCORE_TITLES = {
    "top1": "top-1",
    "agreement": "agreement",
    "cosine": "CLS cosine",
    "patch_cosine": "patch cosine",
    "neighbour": "same neighbour",
}


@dataclass(frozen=True)
class Point:
    """One method at one target, averaged over seeds; `values` are the main score's, image by image."""

    target: float
    macs_ratio: float
    speedup: float
    interval: tuple[float, float]
    values: Tensor
    seeds: tuple[float, ...]
    means: dict[str, float]


@dataclass(frozen=True)
class Curves:
    """One checkpoint in one stage: points by method in ascending speed-up, and the original."""

    checkpoint: str
    stage: str
    main: str
    original: Point
    methods: dict[str, list[Point]]
    unreachable: list[str]


def curves(entries: Mapping[Key, Mapping[str, Any]]) -> list[Curves]:
    """All checkpoints and stages that have results."""
    found = []
    for checkpoint in dict.fromkeys(key.checkpoint for key in entries):
        original = _point([entries[Key(checkpoint, "original", 1.0, "raw", 0)]], 1.0)
        main = entries[Key(checkpoint, "original", 1.0, "raw", 0)]["main"]
        for stage in STAGE_TITLES:
            groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
            for key, entry in entries.items():
                if (key.checkpoint, key.stage) == (checkpoint, stage) and key.method in METHODS:
                    groups.setdefault((key.method, key.target), []).append(entry)
            methods: dict[str, list[Point]] = {}
            unreachable = []
            for (method, target), group in groups.items():
                if "unreachable" in group[0]:
                    unreachable.append(f"{METHODS[method].label} at {target:g}: {group[0]['unreachable']}")
                else:
                    methods.setdefault(method, []).append(_point(group, target))
            if methods:
                ordered = {m: sorted(methods[m], key=lambda p: p.speedup) for m in METHODS if m in methods}
                found.append(Curves(checkpoint, stage, main, original, ordered, sorted(unreachable)))
    return found


def _point(group: list[Mapping[str, Any]], target: float) -> Point:
    main, number = group[0]["main"], len(group)
    values = torch.tensor([entry["scores"][main] for entry in group], dtype=torch.float64)
    speeds = [entry["speed"][-1] for entry in group]
    names = group[0]["scores"]
    return Point(
        target=target,
        macs_ratio=sum(entry["macs_ratio"] for entry in group) / number,
        speedup=sum(speed["speedup"] for speed in speeds) / number,
        interval=(
            min(speed["speedup_interval"][0] for speed in speeds),
            max(speed["speedup_interval"][1] for speed in speeds),
        ),
        values=values.mean(dim=0),
        seeds=tuple(values.mean(dim=1).tolist()),
        means={n: sum(sum(e["scores"][n]) / len(e["scores"][n]) for e in group) / number for n in names},
    )


def bootstrap(values: Tensor) -> tuple[float, float]:
    """95 % percentile interval of the mean over images `(n,)`; of differences, it is the paired interval."""
    means = _draws(len(values)) @ values
    return float(means.quantile(0.025)), float(means.quantile(0.975))


@cache
def _draws(number: int) -> Tensor:
    """`(RESAMPLES, number)`: the share of each image in each resample; the same for all comparisons."""
    drawn = torch.randint(number, (RESAMPLES, number), generator=torch.Generator().manual_seed(0))
    shares = torch.zeros(RESAMPLES, number, dtype=torch.float64)
    return shares.scatter_add_(1, drawn, torch.full_like(shares, 1 / number))


def at_speed(original: Point, points: list[Point], speedup: float) -> Tensor | None:
    """The main score image by image at a speed-up, between measured neighbours.

    None beyond what was measured and where neighbours are more than `MAX_GAP` apart. The curve begins at the original;
    where slower points are no better than faster ones, the faster ones stand.
    """
    faster = sorted((point for point in points if point.speedup > 1.0), key=lambda point: point.speedup)
    best = [max(faster[i:], key=lambda point: float(point.values.mean())).values for i in range(len(faster))]
    line = [(1.0, original.values), *zip((point.speedup for point in faster), best, strict=True)]
    for (slow, first), (fast, second) in pairwise(line):
        if slow <= speedup <= fast and fast <= MAX_GAP * slow:
            share = (speedup - slow) / max(fast - slow, 1e-9)
            return (1 - share) * first + share * second
    return None


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
    own = [[row[i] for m, row in rows.items() if METHODS[m].own and row[i] is not None] for i in range(len(MARKS))]
    best = [max(values, key=lambda v: float(v.mean())) if values else None for values in own]
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
