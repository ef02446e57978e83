"""The PNG report, drawn by matplotlib (the extra `plot`)."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vitcompact.cli.report.colors import ACCENT, GREY, SCALE, is_dark
from vitcompact.reporting.budget import unit_text
from vitcompact.utils.numbers import UNKNOWN

_DPI = 120
_WIDTH = 12.0
_ANNOTATED_HEADS = 8  # beyond it, numbers in the cells would be too small to read


def draw_png(document: Mapping[str, Any]) -> bytes:
    """The content of a PNG file: cost, a matrix of head likeness for each layer, FFN energy.

    Args:
        document: what `AnalysisReport.to_json` gave.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers = [layer for layer in document["layers"] if layer.get("matrix")]
    columns = min(6, max(1, len(layers)))
    rows = math.ceil(len(layers) / columns)
    ffn_height = 0.6 + 0.2 * len(document["ffn"])
    budget = document.get("budget")
    heights = [1.2, *([2.6] if budget else []), *([2.3 * rows] if layers else []), ffn_height]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.8), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_title(document), fontsize=14, fontweight="bold", x=0.01, ha="left")
    panels = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    _draw_cost(panels[0].subplots(), document)
    if budget:
        _draw_budget(panels[1].subplots(), budget)
    if layers:
        _draw_matrices(panels[-2], layers, rows, columns)
    _draw_ffn(panels[-1].subplots(), document["ffn"])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": "vitcompact"})
    return buffer.getvalue()


def _title(document: Mapping[str, Any]) -> str:
    images = document.get("num_samples")
    return f"{document['model']}   " + (f"({images} images)" if images else "(no images: from the weights alone)")


def _draw_cost(axes: Any, document: Mapping[str, Any]) -> None:
    labels, shares = [], []
    for key, name, unit in (("params", "parameters", (1e6, "M")), ("macs", "MACs per image", (1e9, "G"))):
        before, after = document[key], document["predicted"][key]
        share = after / max(before, 1)
        labels.append(f"{name}: {before / unit[0]:.2f} → {after / unit[0]:.2f} {unit[1]}  ({100 * (share - 1):+.1f} %)")
        shares.append(share)
    positions = range(len(labels))
    axes.barh(positions, [1.0] * len(labels), color=SCALE[1], height=0.6)
    axes.barh(positions, shares, color=SCALE[4], height=0.6)
    axes.set_yticks(positions, labels)
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    _bare(axes, "Cost: original (light) and predicted compact (dark)")


def _draw_budget(axes: Any, budget: Mapping[str, Any]) -> None:
    chosen = (budget["target"] if budget.get("left") is None else budget["left"], budget["harm"])
    points = sorted([(point["left"], point["harm"]) for point in budget["curve"]] + [chosen], reverse=True)
    axes.plot([100 * x for x, _ in points], [max(y, 1e-12) for _, y in points], color=SCALE[4])
    axes.plot([100 * chosen[0]], [max(chosen[1], 1e-12)], "o", color=ACCENT)
    axes.set_yscale("log")
    axes.invert_xaxis()
    unit = unit_text(budget)
    axes.set_xlabel(f"% of the {unit} left")
    axes.set_title(f"Least loss increase expected by {unit} left; dot: the plan", fontsize=11, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _draw_matrices(panel: Any, layers: Sequence[Mapping[str, Any]], rows: int, columns: int) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("likeness", SCALE)
    panel.suptitle(
        "Similarity of attention maps (mean cosine); framed: hallucinated head (row) and its parent (column)",
        fontsize=11,
        x=0.01,
        ha="left",
    )
    grid = panel.subplots(rows, columns, squeeze=False).ravel()
    image = None
    for axes, layer in zip(grid, layers, strict=False):
        image = axes.imshow(layer["matrix"], cmap=colors, vmin=0, vmax=1)
        _annotate(axes, layer)
    for axes in grid[len(layers) :]:
        axes.axis("off")
    panel.colorbar(image, ax=list(grid), shrink=0.8, aspect=30)


def _annotate(axes: Any, layer: Mapping[str, Any]) -> None:
    from matplotlib.patches import Rectangle

    heads = int(layer["num_heads"])
    step = max(1, math.ceil(heads / 12))
    ticks = range(0, heads, step)
    axes.set_title(str(layer["name"]), fontsize=9)
    axes.set_xticks(ticks, map(str, ticks), fontsize=7)
    axes.set_yticks(ticks, map(str, ticks), fontsize=7)
    axes.tick_params(length=0)
    for item in layer["hallucinated"]:
        for parent in item["parents"]:
            corner = (parent - 0.5, item["head"] - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=ACCENT, linewidth=2))
    for row, line in enumerate(layer["matrix"] if heads <= _ANNOTATED_HEADS else ()):
        for column, value in enumerate(line):
            if row != column:
                color = "white" if is_dark(value) else "#333333"
                text = f"{value:.2f}".removeprefix("0")
                axes.text(column, row, text, ha="center", va="center", fontsize=6, color=color)


def _draw_ffn(axes: Any, layers: Sequence[Mapping[str, Any]]) -> None:
    if not layers:
        axes.axis("off")
        return
    positions = list(range(len(layers)))
    axes.barh(positions, [layer["energy"] or 0.0 for layer in layers], color=SCALE[4], height=0.7)
    for position, layer in zip(positions, layers, strict=True):
        text = UNKNOWN if layer["energy"] is None else f"{100 * layer['energy']:.1f} %"
        axes.text(1.005, position, f"{text}  rank {layer['rank']}", va="center", fontsize=8, color=GREY)
    axes.set_yticks(positions, [str(layer["name"]) for layer in layers], fontsize=8)
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    _bare(axes, "FFN: share of the output's energy that the rank keeps")


def _bare(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=11, loc="left")
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([])
