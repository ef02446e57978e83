"""The model card (`README.md`) of a saved checkpoint; it states what it was given and invents nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from timm.models import get_pretrained_cfg_value

from vitcompact.checkpoint.provenance import Provenance
from vitcompact.checkpoint.record import Record
from vitcompact.operators import MODEL_OPERATORS, OPERATORS
from vitcompact.utils.plain import to_plain

_PERCENT = ("top1", "top5")


def model_card(record: Record, *, title: str, num_classes: int, license_name: str | None) -> str:
    """The card's text: hub front matter, what was done, what was measured, how to load.

    Args:
        record: what goes into `vitcompact.json`.
        title: name of the checkpoint.
        num_classes: 0 for a feature extractor.
        license_name: of the source, None where it did not say.
    """
    sections = [
        _front_matter(record.provenance, num_classes, license_name),
        f"# {title}\n\n{_origin(record)}",
        _what_was_done(record),
        _measured(to_plain(record.results)),
        _how_to_load(title),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(provenance: Provenance | None, num_classes: int, license_name: str | None) -> str:
    task = "image-classification" if num_classes else "image-feature-extraction"
    data: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": task,
        "license": license_name or "unknown",
        "tags": [task, "timm", "vitcompact", "model-compression"],
    }
    hub_id = _hub_id(provenance)
    if hub_id:
        data["base_model"] = hub_id
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---"


def _hub_id(provenance: Provenance | None) -> str | None:
    """The source's name on the hub, if it is there."""
    if provenance is None:
        return None
    if provenance.kind == "hf-hub":
        return provenance.source.partition(":")[2].partition("@")[0] or None
    if provenance.kind == "timm":
        try:
            hub_id = get_pretrained_cfg_value(provenance.source, "hf_hub_id")
        except RuntimeError:  # a tag that this timm does not know
            return None
        return hub_id if isinstance(hub_id, str) else None
    return None


def _origin(record: Record) -> str:
    text = f"Made with vitcompact {record.versions.get('vitcompact', '')} from timm's `{record.base}`"
    provenance = record.provenance
    if provenance is None:
        return text + "."
    if provenance.kind == "random":
        return text + ", with random weights: untrained."
    name = provenance.source
    if provenance.kind in ("local-dir", "file"):  # a card is published: it names no folders of the machine
        name = Path(name.removeprefix("local-dir:")).name
    text += f", weights `{_cell(name)}`"
    return text + (f" (SHA-256 `{provenance.sha256}`)." if provenance.sha256 else ".")


def _what_was_done(record: Record) -> str:
    plan = record.plan
    if not plan.layers and not plan.merge_tokens:
        return "## What was done\n\nNothing: this is the model as it was loaded, unchanged."
    counts = Counter(spec.op for layer in plan.layers for spec in layer.operators)
    lines = [f"- {op}, {count} layer(s): {OPERATORS[op].description}" for op, count in counts.items()]
    whole = ((operator, operator.label(plan)) for operator in MODEL_OPERATORS)
    lines += [f"- {operator.name}, {label}: {operator.description}" for operator, label in whole if label]
    if plan.skipped:
        lines.append(f"- {len(plan.skipped)} layer(s) left unchanged")
    lines.append(f"- form: {plan.form}" + ("" if plan.form == "folded" else " (to be fine-tuned or folded)"))
    return "## What was done\n\n" + "\n".join(lines) + "\n\nThe whole plan is in `config.json` and `vitcompact.json`."


def _measured(results: Mapping[str, Any]) -> str:
    pairs, singles = [], []
    for name, value in _leaves(results):
        if isinstance(value, Mapping):
            pairs.append(f"| {name} | {_number(name, value['before'])} | {_number(name, value['after'])} |")
        else:
            singles.append(f"| {name} | {_number(name, value)} |")
    tables = []
    if pairs:
        tables.append("\n".join(["| | before | after |", "|---|---|---|", *pairs]))
    if singles:
        tables.append("\n".join(["| | |", "|---|---|", *singles]))
    return "## Measured\n\n" + "\n\n".join(tables) if tables else ""


def _leaves(results: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers, texts and before/after pairs with their dotted names; lists and nulls are left to `vitcompact.json`."""
    for key, value in results.items():
        if isinstance(value, Mapping) and {"before", "after"} <= value.keys():
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float, str)):
            yield f"{prefix}{key}", value


def _number(name: str, value: Any) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _cell(str(value))
    unit = " %" if name.rpartition(".")[2] in _PERCENT else ""
    return (f"{value:,}" if isinstance(value, int) else f"{value:.4g}") + unit


def _cell(text: str) -> str:
    """Text that cannot break out of a table cell or a line."""
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'")


def _how_to_load(title: str) -> str:
    name = json.dumps(f"local-dir:{title}", ensure_ascii=False)
    return (
        "## How to load\n\n```python\nimport timm\nimport vitcompact\n"
        f"model = timm.create_model({name}, pretrained=True).eval()\n```"
    )
