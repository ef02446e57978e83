"""The page: sections made of whatever is known, in one order for all verbs. What is unknown is left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from vitcompact.reporting import answers, attention, budget, compared, measures, svg
from vitcompact.reporting.html import Section, page, table_of
from vitcompact.utils.numbers import duration

Document = Mapping[str, Any]
"""What is known, plain data:

- `title`, `lead`: of the page;
- `measured`: see `measures`; `gave_up`: targets that were missed, with what was reached; `steps`: of the job;
- `budget`: what `budget_json` says; `savings`, `plan`: see `budget`;
- `layers`, `ffn`, `skipped`, `num_samples`: as in `AnalysisReport.to_json`;
- `maps`, `merged`, `changed`: see `attention` and `answers`; `models`: see `compared`;
- `made`: names and texts of the command, checkpoint and date.
"""


def draw(document: Document) -> str:
    """A whole page, one file that loads nothing."""
    title = str(document.get("title") or document.get("model") or "a model")
    sections = [section for make in SECTIONS for section in make(document)]
    return page(f"vitcompact: {title}", str(document.get("lead") or _lead(document)), sections)


def _lead(document: Document) -> str:
    if "num_samples" not in document:
        return ""
    images = document["num_samples"]
    return f"Measured on {images} images." if images else "No images were given: measured on the weights alone."


def _figures(document: Document) -> Sequence[Section | None]:
    measured = document.get("measured")
    return (measures.figures(measured),) if measured else ()


def _given_up(document: Document) -> Sequence[Section | None]:
    told = document.get("gave_up") or {}
    names = {"max_drop": "the largest loss", "speedup": "the speed-up", "macs": "the MACs", "params": "the parameters"}
    lines = (
        f'<p class="told">{escape(names.get(name, name).capitalize())} could not be held: {escape(str(text))}.</p>'
        for name, text in told.items()
    )
    return (Section("", "".join(lines)),) if told else ()


def _measures(document: Document) -> Sequence[Section | None]:
    measured = document.get("measured")
    return (measures.table(measured),) if measured else ()


def _models(document: Document) -> Sequence[Section | None]:
    found = document.get("models")
    return (compared.table(found), compared.plot(found)) if found else ()


def _steps(document: Document) -> Sequence[Section | None]:
    steps = document.get("steps")
    if not steps:
        return ()
    rows = [
        (step["name"], step["note"], duration(step["seconds"]), "" if step["drop"] is None else f"{step['drop']:.2f}")
        for step in steps
    ]
    return (Section("Steps", table_of(("step", "", "time", "points lost"), rows, text=2)),)


def _budget(document: Document) -> Sequence[Section | None]:
    found, plan = document.get("budget"), document.get("plan") or {}
    saved = document.get("savings")
    planned = plan.get("layers", ())
    return (
        budget.loss_curve(found) if found else None,
        budget.savings(saved) if saved else None,
        budget.layers(planned, plan.get("merge_tokens", ()), found) if planned or found else None,
    )


def _attention(document: Document) -> Sequence[Section | None]:
    layers = document.get("layers")
    found, merged = document.get("maps"), document.get("merged")
    return (
        attention.heads(layers, bool(document.get("num_samples"))) if layers else None,
        attention.maps(found) if found and found["layers"] else None,
        attention.merged(merged) if merged else None,
    )


def _ffn(document: Document) -> Sequence[Section | None]:
    layers = document.get("ffn")
    if not layers:
        return ()
    text = (
        "How much of the energy of each FFN's output is lost when only the leading directions are kept; pale lines are "
        "early layers."
    )
    lines = []
    for layer in layers:
        shares = layer.get("spectrum") or ()
        points = [((i + 1) / len(shares), 1 - share) for i, share in enumerate(shares)]
        lines.append((str(layer["name"]), points[:-1], (layer["rank"] / max(layer["embed"], 1), 1 - layer["energy"])))
    if any(rank < 1 for _, _, (rank, _) in lines):
        text += " A dot is the rank that the plan takes."
    chart = svg.spectra(lines, "directions kept") if any(len(points) > 1 for _, points, _ in lines) else ""
    rows = [
        (str(layer["name"]), "full rank" if layer["rank"] == layer["embed"] else f"rank {layer['rank']}", _lost(layer))
        for layer in layers
    ]
    table = table_of(("layer", "kept", "energy lost"), rows, text=2)
    body = f"{chart}<details><summary>{len(rows)} layers</summary>{table}</details>"
    return (Section("FFN outputs", body, text),)


def _lost(layer: Mapping[str, Any]) -> str:
    return "0" if layer["rank"] == layer["embed"] else f"{100 * max(1 - layer['energy'], 0.0):.2g} %"


def _changed(document: Document) -> Sequence[Section | None]:
    found = document.get("changed")
    return (answers.changed(found),) if found else ()


def _skipped(document: Document) -> Sequence[Section | None]:
    reasons: dict[str, list[str]] = {}
    for item in document.get("skipped") or ():
        reasons.setdefault(str(item["reason"]), []).append(str(item["name"]))
    rows = [(", ".join(names), reason) for reason, names in reasons.items()]
    return (Section("Left unchanged", table_of(("layers", "reason"), rows)),) if rows else ()


def _made(document: Document) -> Sequence[Section | None]:
    made = dict(document.get("made") or {})
    if not made:
        return ()
    command = made.pop("command", None)
    told = f"<pre><code>{escape(str(command))}</code></pre>" if command else ""
    rows = [(name, str(value)) for name, value in made.items() if value]
    return (Section("How this was made", f"<footer>{told}{table_of(('', ''), rows)}</footer>"),)


SECTIONS: tuple[Callable[[Document], Sequence[Section | None]], ...] = (
    _figures,
    _given_up,
    _models,
    _measures,
    _budget,
    _changed,
    _attention,
    _ffn,
    _steps,
    _skipped,
    _made,
)
