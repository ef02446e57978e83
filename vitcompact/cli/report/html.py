"""The HTML report: one file, inline SVG, no script and nothing to load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vitcompact.cli.progress import duration
from vitcompact.cli.render.budget import UNITS, describe, target_text
from vitcompact.cli.render.compact import rows_of
from vitcompact.cli.report import svg
from vitcompact.cli.report.colors import ACCENT

_STYLE = f"""
:root {{ color-scheme: light; }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: #212529; background: #fff; max-width: 1100px; margin: 2em auto;
  padding: 0 1em; }}
h1 {{ font-size: 1.5em; margin-bottom: 0; }} h2 {{ font-size: 1.15em; margin: 1.8em 0 .3em; }}
p {{ max-width: 46em; margin: .3em 0 .8em; color: #495057; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .2em 1em .2em 0; text-align: left; vertical-align: top; }}
th {{ border-bottom: 1px solid #ced4da; font-weight: 600; }} .number {{ text-align: right; }}
table {{ font-variant-numeric: tabular-nums; }} .wide {{ overflow-x: auto; }}
.grid {{ display: flex; flex-wrap: wrap; gap: 12px 20px; }}
svg {{ max-width: 100%; height: auto; }}
svg text {{ font: 12px system-ui, sans-serif; fill: #343a40; }} svg .title {{ font-weight: 600; }}
svg .grid-line {{ stroke: #dee2e6; }}
svg .small {{ font-size: 10px; }} svg .marked {{ fill: {ACCENT}; font-weight: 600; }}
svg .cell {{ font-size: 10px; text-anchor: middle; }} svg .light {{ fill: #fff; }}
"""


def draw_html(document: Mapping[str, Any]) -> str:
    """A page with cost, head likeness, FFN energy and what is left alone.

    Args:
        document: what `AnalysisReport.to_json` gave.
    """
    title = f"vitcompact: {document['model']}"
    body = [f"<h1>{escape(title)}</h1>", f"<p>{_seen(document)}</p>", _compacted(document) or _cost(document)]
    body.append(_budget(document))
    body.append(_heads(document["layers"]))
    body += [_ffn(document["ffn"]), _skipped(document.get("skipped", ()))]
    return page(title, body)


def page(title: str, body: Sequence[str]) -> str:
    """A whole HTML file of parts, some of which may be empty."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="generator" content="vitcompact">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>{''.join(part for part in body if part)}</body></html>\n"
    )


def _seen(document: Mapping[str, Any]) -> str:
    images = document.get("num_samples")
    return f"Measured on {images} images." if images else "No images were given: measured on the weights alone."


def _cost(document: Mapping[str, Any]) -> str:
    rows = []
    for key, label in (("params", "parameters"), ("macs", "MACs per image")):
        before, after = document[key], document["predicted"][key]
        rows.append((label, f"{before:,}", f"{after:,}", f"{100 * (after - before) / max(before, 1):+.1f} %"))
    return "<h2>Cost</h2>" + table_of(("", "original", "compact (predicted)", "change"), rows, text=1)


def _compacted(document: Mapping[str, Any]) -> str:
    """Before and after of a finished job, which target was given up, and the steps."""
    done = document.get("compacted")
    if not done:
        return ""
    given_up = "".join(f"<p><strong>{escape(told)}</strong></p>" for told in done["reached"]["gave_up"].values())
    steps = [
        (step["name"], step["note"], duration(step["seconds"]), "" if step["drop"] is None else f"{step['drop']:.2f}")
        for step in done["steps"]
    ]
    return (
        f"<h2>Before and after</h2>{given_up}"
        + table_of(("", "before", "after", "change", "95 % interval"), rows_of(done), text=1)
        + "<h2>Steps</h2>"
        + table_of(("step", "", "time", "points lost"), steps, text=2)
    )


def _budget(document: Mapping[str, Any]) -> str:
    """Loss against cost with the point chosen, and what the plan does to which layer."""
    budget = document.get("budget")
    if not budget:
        return ""
    unit = UNITS[budget["unit"]]
    chosen = (budget["target"] if budget.get("left") is None else budget["left"], budget["harm"])
    points = [(point["left"], point["harm"]) for point in budget["curve"]]
    parts = [f"<h2>Budget: {escape(unit)}</h2><p>{escape(target_text(budget))}. " if budget.get("left") else "<p>"]
    parts.append(
        "The curve is the least loss increase (expected squared change of the output) at every cost; the dot is the "
        f"plan.</p>{svg.curve(points, chosen, unit)}"
    )
    rows = [
        (str(layer["name"]), ", ".join(map(describe, layer["operators"])) or "nothing", *_saves(layer))
        for layer in budget["layers"]
    ]
    return "".join(parts) + table_of(("layer", "what", "saves", "loss increase"), rows, text=2)


def _saves(layer: Mapping[str, Any]) -> tuple[str, str]:
    return f"{100 * layer['saving']:.2f} %", f"{layer['harm']:.2e}"


def _heads(layers: Sequence[Mapping[str, Any]]) -> str:
    if not layers:
        return ""
    text = (
        "<h2>Attention heads</h2><p>How similar the attention maps of two heads are: mean cosine over images and "
        "queries. A hallucinated head gets its map from its parent.</p>"
    )
    drawn = [svg.matrix(layer) for layer in layers if layer.get("matrix")]
    if drawn:
        return f'{text}{svg.legend()}<div class="grid">{"".join(drawn)}</div>'
    rows = [(str(layer["name"]), layer["similarity"], _number(layer["similarity"])) for layer in layers]
    return text + svg.bars(rows)


def _ffn(layers: Sequence[Mapping[str, Any]]) -> str:
    if not layers:
        return ""
    rows = [(str(layer["name"]), layer["energy"], f"{_percent(layer['energy'])} at {_rank(layer)}") for layer in layers]
    return "<h2>FFN outputs</h2><p>Share of the energy of each FFN's output that its rank keeps.</p>" + svg.bars(rows)


def _rank(layer: Mapping[str, Any]) -> str:
    return "full rank" if layer["rank"] == layer.get("embed") else f"rank {layer['rank']}"


def _skipped(skipped: Sequence[Mapping[str, Any]]) -> str:
    if not skipped:
        return ""
    rows = [(str(item["name"]), str(item["reason"])) for item in skipped]
    return "<h2>Left unchanged</h2>" + table_of(("layer", "reason"), rows)


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]], text: int | None = None) -> str:
    """A table whose columns after the first `text` ones are numbers."""
    text = len(head) if text is None else text

    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = ("" if i < text else ' class="number"' for i in range(len(row)))
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    top = cells("th", head)
    lines = ("<tr>" + cells("td", row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{''.join(lines)}</table>"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.1f} %"
