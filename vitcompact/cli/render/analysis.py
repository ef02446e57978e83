"""The tables of `analyze`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from vitcompact.cli.render.budget import budget_tables
from vitcompact.cli.render.common import UNKNOWN, cost_table, number, skipped_tables, table, titled


def analysis_tables(document: Mapping[str, Any]) -> list[RenderableType]:
    """Heads, FFNs, cost before and after, and what is left unchanged."""
    images = document.get("num_samples")
    seen = f"{images} images" if images else "without images, from the weights alone"
    parts: list[RenderableType] = [Text.assemble((str(document["model"]), "bold"), f"  ({seen})"), ""]
    if document["layers"]:
        parts.append(_heads(document["layers"]))
    if document["ffn"]:
        parts.append(_ffn(document["ffn"]))
    if document.get("budget"):
        parts += budget_tables(document["budget"])
    parts += skipped_tables(document.get("skipped", ()))
    parts.append(cost_table("Cost", document, document["predicted"]))
    return parts


def pairs_text(hallucinated: Sequence[Mapping[str, Any]]) -> str:
    """Hallucinated heads with their parents: `1←0 4←2`."""
    return " ".join(f"{item['head']}←{'+'.join(map(str, item['parents']))}" for item in hallucinated)


def _heads(layers: Sequence[Mapping[str, Any]]) -> Group:
    found = table(
        *("layer", "heads", "cosine", "JS", "kept", "hallucinated←parent"),
        right=("heads", "cosine", "JS"),
        whole=("layer",),
    )
    for layer in layers:
        found.add_row(
            Text(layer["name"]),
            str(layer["num_heads"]),
            number(layer["similarity"], 2),
            number(layer.get("similarity_js"), 2),
            Text(" ".join(map(str, layer["kept"]))),
            Text(pairs_text(layer["hallucinated"]) or "none"),
        )
    return titled("Attention: similarity of each hallucinated head's map to its parent's", found)


def _ffn(layers: Sequence[Mapping[str, Any]]) -> Group:
    found = table(
        *("layer", "hidden", "width", "rank", "energy"),
        right=("hidden", "width", "rank", "energy"),
        whole=("layer",),
    )
    for layer in layers:
        sizes = (str(layer.get(name, "")) for name in ("hidden", "embed", "rank"))
        found.add_row(Text(layer["name"]), *sizes, _share(layer["energy"]))
    return titled("FFN: share of the output's energy that the rank keeps", found)


def _share(value: float | None) -> str:
    return UNKNOWN if value is None else f"{100 * value:.1f} %"
