"""The frontier as a picture: score against measured speed-up (matplotlib, for this benchmark only)."""

from __future__ import annotations

from typing import Any

import matplotlib
from frontier_curves import MARKS, SCORE_TITLES, STAGE_TITLES, Curves, Point, bootstrap
from frontier_methods import METHODS

matplotlib.use("Agg")
from matplotlib import pyplot

DEPTH = {"top1": 0.20, "cosine": 0.1}
"""How far below the original the axis reaches at most; what is lower is drawn at the edge as a triangle."""

OWN_COLORS = ("#0b3c8c", "#1f77d0", "#6a1b9a", "#b0409b", "#00796b", "#26a69a", "#283593", "#8bc34a")
OTHER_COLORS = ("#9e9e9e", "#616161", "#bf8f00", "#c0392b", "#e67e22", "#7f8c3a", "#5d4037")
MARKERS = "osD^vPX<"


def figure(panels: list[Curves]) -> Any:
    """One panel a stage; ours in solid lines, other methods dashed, bars as `_interval` says."""
    drawn, axes = pyplot.subplots(
        1, len(panels), figsize=(6.6 * len(panels), 6.0), squeeze=False, sharey=True, layout="constrained"
    )
    handles: dict[str, Any] = {}
    limits = _limits(panels)
    for axis, panel in zip(axes[0], panels, strict=True):
        _panel(axis, panel, limits, handles)
    axes[0][0].set_ylabel(SCORE_TITLES[panels[0].main] + (", %" if panels[0].main == "top1" else ""))
    order = [METHODS[m].label for m in METHODS if METHODS[m].label in handles]
    drawn.legend(
        [handles["original"], *(handles[label] for label in order)],
        ["original", *order],
        loc="outside lower center",
        ncols=3 if len(panels) > 1 else 2,
        frameon=False,
        fontsize=9,
    )
    drawn.suptitle(panels[0].checkpoint)
    return drawn


def _limits(panels: list[Curves]) -> tuple[float, float]:
    """The score's axis: all intervals of all panels, but no more than DEPTH below the original."""
    best = float(panels[0].original.values.mean())
    points = [(panel, point) for panel in panels for method in panel.methods.values() for point in method]
    low, high = zip(*(_interval(panel, point) for panel, point in points), strict=True)
    depth = min(DEPTH[panels[0].main], max(best - min(low), 0.01 * DEPTH[panels[0].main]))
    return best - 1.05 * depth, max(best, *high) + 0.05 * depth


def _interval(panel: Curves, point: Point) -> tuple[float, float]:
    """The point's score, with the paired interval of its difference to the original: all share their images."""
    low, high = bootstrap(point.values - panel.original.values)
    best = float(panel.original.values.mean())
    return best + low, best + high


def _panel(axis: Any, panel: Curves, limits: tuple[float, float], handles: dict[str, Any]) -> None:
    unit = 100 if panel.main == "top1" else 1
    best, floor, top = (unit * value for value in (float(panel.original.values.mean()), *limits))
    handles["original"] = axis.plot(1, best, marker="*", markersize=13, color="black", linestyle="none")[0]
    axis.axhline(best, color="black", linewidth=0.6, alpha=0.4)
    own = [m for m in METHODS if METHODS[m].own]
    other = [m for m in METHODS if not METHODS[m].own]
    for method, points in panel.methods.items():
        ours = METHODS[method].own
        place = (own if ours else other).index(method)
        colors = OWN_COLORS if ours else OTHER_COLORS
        style = {"color": colors[place % len(colors)], "marker": MARKERS[place % len(MARKERS)], "markersize": 5}
        style |= {"linestyle": "-" if ours else "--", "linewidth": 1.8 if ours else 1.1, "zorder": 3 if ours else 2}
        x = [point.speedup for point in points]
        y = [unit * float(point.values.mean()) for point in points]
        bounds = [_interval(panel, point) for point in points]
        bars = [[max(0.0, v - unit * b[0]) for v, b in zip(y, bounds, strict=True)]]
        bars.append([max(0.0, unit * b[1] - v) for v, b in zip(y, bounds, strict=True)])
        handles[METHODS[method].label] = axis.errorbar(x, y, yerr=bars, elinewidth=0.8, capsize=2, **style)
        below = [speed for speed, value in zip(x, y, strict=True) if value < floor]
        if below:  # an empty line would take part in the layout
            edge = floor + 0.015 * (top - floor)
            axis.plot(below, [edge] * len(below), marker="v", linestyle="none", color=style["color"])
    for mark in MARKS:
        axis.axvline(mark, color="black", linewidth=0.4, linestyle=":", alpha=0.6)
    axis.set_ylim(floor, top)
    axis.set_xlabel("measured speed-up")
    axis.set_title(STAGE_TITLES[panel.stage], fontsize=11)
    axis.grid(alpha=0.2)
