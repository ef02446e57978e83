"""The frontier benchmark's results as curves: points averaged over seeds, their intervals, scores at equal speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
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
