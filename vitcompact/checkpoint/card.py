"""The model card (`README.md`) of a saved checkpoint; it states what it was given and invents nothing."""

from __future__ import annotations

import json
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from timm.models import get_pretrained_cfg_value

from vitcompact.checkpoint import card_sections as sections
from vitcompact.checkpoint.provenance import Provenance
from vitcompact.checkpoint.record import Record
from vitcompact.errors import printable


def model_card(record: Record, *, title: str, num_classes: int, license_name: str | None) -> str:
    """The card's text: hub front matter, before and after, how it was made, limits, how to load.

    Args:
        record: what goes into `vitcompact.json`.
        title: name of the checkpoint.
        num_classes: 0 for a feature extractor.
        license_name: of the source, None where it did not say.
    """
    parts = [
        f"---\n{_front_matter(record, title, num_classes, license_name)}\n---",
        f"# {title}\n\n{sections.origin(record)}",
        sections.before_after(record),
        _how_to_load(title),
        sections.how_made(record),
        sections.what_was_done(record),
        sections.limits(record),
        sections.more_figures(record),
    ]
    return printable("\n\n".join(part for part in parts if part) + "\n")


def _front_matter(record: Record, title: str, num_classes: int, license_name: str | None) -> str:
    task = "image-classification" if num_classes else "image-feature-extraction"
    top1 = sections.measured_in(record)["after"].get("top1")
    data = sections.evaluated_on(record) or "unknown"
    scores = [] if top1 is None else [_score(task, data, round(float(top1), 4))]
    return ModelCardData(
        base_model=hub_id(record.provenance),
        eval_results=scores or None,
        library_name="timm",
        license=license_name or "unknown",
        model_name=title if scores else None,
        pipeline_tag=task,
        tags=[task, "timm", "vitcompact", "model-compression"],
    ).to_yaml()


def _score(task: str, data: str, value: float) -> Any:
    return EvalResult(
        task_type=task,
        dataset_type=data,
        dataset_name=data,
        metric_type="accuracy",
        metric_name="top-1 in percent",
        metric_value=value,
    )


def hub_id(provenance: Provenance | None) -> str | None:
    """The source's name on the hub, if it is there."""
    if provenance is None:
        return None
    if provenance.kind == "hf-hub":
        return provenance.source.partition(":")[2].partition("@")[0] or None
    if provenance.kind == "timm":
        try:
            found = get_pretrained_cfg_value(provenance.source, "hf_hub_id")
        except RuntimeError:  # a tag that this timm does not know
            return None
        return found if isinstance(found, str) else None
    return None


def _how_to_load(title: str) -> str:
    name = json.dumps(f"local-dir:{title}", ensure_ascii=False)
    return (
        "## How to load\n\n```python\nimport timm\nimport vitcompact\n"
        f"model = timm.create_model({name}, pretrained=True).eval()\n```"
    )
