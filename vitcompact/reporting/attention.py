"""Attention in pages: likeness of heads, maps on the user's pictures, merged tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vitcompact.reporting import svg
from vitcompact.reporting.html import Section, image, table_of
from vitcompact.utils.numbers import number


def heads(layers: Sequence[Mapping[str, Any]], measured: bool) -> Section:
    """The matrix of every layer; layers without one are listed.

    Args:
        measured: on images; otherwise read off the weights.
    """
    how = "mean cosine over images and queries" if measured else "cosine of their bilinear forms, from the weights"
    text = f"How similar the attention maps of two heads are: {how}. "
    if any(layer["hallucinated"] for layer in layers):
        text += "A hallucinated head gets its map from its parent."
    drawn = [svg.matrix(layer) for layer in layers if layer.get("matrix")]
    if drawn:
        return Section("Attention heads", f'{svg.matrix_legend()}<div class="grid">{"".join(drawn)}</div>', text)
    rows = [(str(layer["name"]), number(layer["similarity"], 2)) for layer in layers]
    return Section("Attention heads", table_of(("layer", "similarity"), rows, text=1), text)


def maps(found: Mapping[str, Any]) -> Section:
    """Maps of some heads on some pictures.

    Args:
        found: `pictures` (data URIs), `query` (whose attention is drawn) and `layers`, each with a `name` and `heads`;
            a head has its number `head`, a `title`, and `rows` of `label` and `maps` (a data URI for each picture).
    """
    top = "".join(image(uri, f"picture {i + 1}") for i, uri in enumerate(found["pictures"]))
    parts = []
    for index, layer in enumerate(found["layers"]):
        rows = "".join(_head(layer["name"], head) for head in layer["heads"])
        number_of = len(layer["heads"])
        whole = number_of + layer.get("more", 0)
        told = f"{number_of} heads of {whole}" if whole > number_of else f"{number_of} heads"
        if whole == 1:
            told = escape(str(layer["heads"][0]["title"]))
        parts.append(
            f"<details{' open' if index == 0 else ''}><summary><code>{escape(str(layer['name']))}</code> "
            f'<span class="muted">{told}</span></summary><div class="maps"><span></span>{top}{rows}</div></details>'
        )
    return Section("Attention maps on your pictures", "".join(parts), f"{found['query']} Bright is much attention.")


def merged(pictures: Sequence[Mapping[str, Any]]) -> Section:
    """Merged tokens over pictures: each has its `views`, data URIs with their captions."""
    figures = []
    for number_of, shown in enumerate(pictures):
        views = shown["views"]
        row = "".join(image(uri, f"picture {number_of + 1}: {caption}") for uri, caption in views)
        told = " → ".join(caption for _, caption in views)
        figures.append(f'<figure><div class="row">{row}</div><figcaption>{escape(told)}</figcaption></figure>')
    text = "Patches that became one token are filled with their mean colour; lines are drawn between tokens."
    return Section("Merged tokens", f'<div class="strip">{"".join(figures)}</div>', text)


def _head(layer: str, head: Mapping[str, Any]) -> str:
    parts = [f"<b>{escape(str(head['title']))}</b>"]
    for row in head["rows"]:
        parts.append(f"<span>{escape(str(row['label']))}</span>")
        what = f"{layer} head {head['head']}: {row['label']}"
        parts += [image(uri, f"{what}, picture {i + 1}") for i, uri in enumerate(row["maps"])]
    return "".join(parts)
