"""What became of single answers: the images whose predictions changed most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vitcompact.reporting.html import Section


def changed(found: Mapping[str, Any]) -> Section | None:
    """The most changed predictions.

    Args:
        found: `seen` images, `differ` of them with another first guess (None without a head), and `images`: each with
            its `picture` (data URI), `label` or None, and `before` and `after` (a name and a probability), or the
            `cosine` of its features.
    """
    shown: Sequence[Mapping[str, Any]] = found["images"]
    if not shown:
        return None
    if found["differ"] is None:
        text = f"Of {found['seen']} images, those whose features changed most."
    else:
        text = (
            f"{found['differ']} of {found['seen']} images have another first guess; those that changed most come first."
        )
    return Section("Most changed predictions", f'<div class="answers">{"".join(map(_answer, shown))}</div>', text)


def _answer(one: Mapping[str, Any]) -> str:
    lines = []
    if one.get("cosine") is not None:
        lines.append(f"cosine with the original's features {one['cosine']:.3f}")
    else:
        (first, sure), (last, now) = one["before"], one["after"]
        kind = "changed" if first != last else ""
        lines.append(f"before: {escape(str(first))} {100 * sure:.0f} %")
        lines.append(f'<span class="{kind}">after: {escape(str(last))} {100 * now:.0f} %</span>')
    if one.get("label") is not None:
        lines.append(f'<span class="muted">labelled {escape(str(one["label"]))}</span>')
    picture = f'<img src="{escape(one["picture"])}" alt="{escape(_alt(one))}">'
    return f'<div class="answer">{picture}<div>{"<br>".join(lines)}</div></div>'


def _alt(one: Mapping[str, Any]) -> str:
    return "an image" if one.get("before") is None else f"an image taken for {one['before'][0]} before"
