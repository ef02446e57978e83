"""The HTML report: one file, inline SVG, no script and nothing to load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

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
.grid {{ display: flex; flex-wrap: wrap; gap: 12px 20px; }}
svg {{ max-width: 100%; height: auto; }}
svg text {{ font: 12px system-ui, sans-serif; fill: #343a40; }} svg .title {{ font-weight: 600; }}
svg .small {{ font-size: 10px; }} svg .marked {{ fill: {ACCENT}; font-weight: 600; }}
svg .cell {{ font-size: 10px; text-anchor: middle; }} svg .light {{ fill: #fff; }}
"""


def draw_html(document: Mapping[str, Any]) -> str:
    """A page with cost, head likeness, FFN energy and what is left alone.

    Args:
        document: what `AnalysisReport.to_json` gave.
    """
    title = f"vitcompact: {document['model']}"
    body = [f"<h1>{escape(title)}</h1>", f"<p>{_seen(document)}</p>", _cost(document), _heads(document["layers"])]
    body += [_ffn(document["ffn"]), _skipped(document.get("skipped", ()))]
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
    return "<h2>Cost</h2>" + _table(("", "original", "compact (predicted)", "change"), rows)


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
    rows = [
        (str(layer["name"]), layer["energy"], f"{_percent(layer['energy'])} at rank {layer['rank']}")
        for layer in layers
    ]
    return "<h2>FFN outputs</h2><p>Share of the energy of each FFN's output that its rank keeps.</p>" + svg.bars(rows)


def _skipped(skipped: Sequence[Mapping[str, Any]]) -> str:
    if not skipped:
        return ""
    rows = [(str(item["name"]), str(item["reason"])) for item in skipped]
    return "<h2>Left unchanged</h2>" + _table(("layer", "reason"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    numbers = len(head) == 4
    kind = ' class="number"' if numbers else ""
    top = "".join(f"<th{kind if i else ''}>{escape(text)}</th>" for i, text in enumerate(head))
    lines = (
        "<tr>" + "".join(f"<td{kind if i else ''}>{escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{top}</tr>{''.join(lines)}</table>"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.1f} %"
