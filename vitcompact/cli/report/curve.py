"""A training run as a PNG: its loss by steps and the scores of evaluations, drawn by matplotlib (the extra `plot`)."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from typing import Any

from vitcompact.cli.report.colors import ACCENT, GREY, SCALE

_POINTS = 2000
"""More steps than that are drawn as means of so many runs of them."""
_DECADE = 10.0
"""Losses that fall further than by this factor are drawn on a logarithmic axis."""
_SCORES = {"eval_top1": "top-1, %", "eval_agreement": "agreement", "eval_cosine": "cosine of features"}


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_curve(losses: Sequence[tuple[int, float | None]], rows: Sequence[Mapping[str, float | None]]) -> bytes:
    """The content of a PNG file.

    Args:
        losses: of steps, by their number; None for one that was skipped.
        rows: of epochs and evaluations, as `FinetuneResult.history` has them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    known = thinned([(step, loss) for step, loss in losses if loss is not None])
    if known:
        axes.plot(*zip(*known, strict=True), color=SCALE[2], linewidth=0.8)
    means = [(row["step"], row["train_loss"]) for row in rows if row["train_loss"] is not None]
    if len(means) > 1:
        axes.plot(*zip(*means, strict=True), color=SCALE[4], marker=".", label="mean since the last dot")
        figure.legend(loc="outside upper left", frameon=False)
    heights = [loss for _, loss in known]
    if known and 0 < _DECADE * min(heights) < max(heights):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.spines[["top", "right"]].set_visible(False)
    _draw_scores(axes, rows)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": "vitcompact"})
    return buffer.getvalue()


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most some thousand points: means of runs of equal length."""
    run = -(-len(points) // _POINTS) or 1
    runs = [points[start : start + run] for start in range(0, len(points), run)]
    return [(sum(step for step, _ in part) / len(part), sum(loss for _, loss in part) / len(part)) for part in runs]


def _draw_scores(axes: Any, rows: Sequence[Mapping[str, float | None]]) -> None:
    """The score that decides which weights are best, on an axis of its own."""
    for name, label in _SCORES.items():
        scores = [(row["step"], row[name]) for row in rows if row[name] is not None]
        if scores:
            other = axes.twinx()
            other.plot(*zip(*scores, strict=True), color=ACCENT, marker="o", markersize=4)
            other.set_ylabel(label, color=ACCENT)
            other.tick_params(axis="y", colors=GREY)
            other.spines["top"].set_visible(False)
            return
