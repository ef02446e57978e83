"""The sections of a model card, each made of what the record says and absent where that is nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from vitcompact.checkpoint.record import Record
from vitcompact.errors import printable
from vitcompact.operators import MODEL_OPERATORS, OPERATORS
from vitcompact.reporting.measures import rows_of
from vitcompact.utils.numbers import percent
from vitcompact.utils.places import without_folders
from vitcompact.utils.plain import to_plain

MEASURED, COMMAND = "measured", "command"
"""Keys of results: both models as `reporting.measures` has them, and what was typed."""
MEASURES = ("top1", "agreement", "cosine", "latency_ms", "macs", "params", "bytes")
FEW_IMAGES = 128
"""Fewer than these say little about agreement."""

_SHOWN_ELSEWHERE = (MEASURED, COMMAND, *MEASURES, "fidelity", "reached", "num_samples")
_PERCENT = ("top1", "top5")


def origin(record: Record) -> str:
    """What it was made with and from."""
    text = f"Made with vitcompact {record.versions.get('vitcompact', '')} from timm's `{record.base}`"
    provenance = record.provenance
    if provenance is None:
        return text + "."
    if provenance.kind == "random":
        return text + ", with random weights: untrained."
    name = without_folders(provenance.source)
    if provenance.kind in ("local-dir", "file"):  # a card is published: it names no folders of the machine
        name = name.removeprefix("local-dir:").rstrip("/").rpartition("/")[2]
    text += f", weights `{cell(name)}`"
    return text + (f" (SHA-256 `{provenance.sha256}`)." if provenance.sha256 else ".")


def measured_in(record: Record) -> dict[str, Any]:
    """Both models as `reporting.measures` takes them, from what was recorded so, or from pairs in the results."""
    results = to_plain(record.results)
    recorded = results.get(MEASURED)
    if isinstance(recorded, Mapping) and all(isinstance(recorded.get(side), Mapping) for side in ("before", "after")):
        return dict(recorded)
    pairs = {name: results[name] for name in MEASURES if isinstance(results.get(name), Mapping)}
    sides = ({name: pair.get(side) for name, pair in pairs.items()} for side in ("before", "after"))
    before, after = sides
    like = results.get("fidelity")
    if isinstance(like, Mapping):
        after |= {name: like[name] for name in ("agreement", "cosine") if like.get(name) is not None}
    return {"before": before, "after": after}


def before_after(record: Record) -> str:
    """The table of both models, and what they were compared on."""
    measured = measured_in(record)
    rows = [row.cells for row in rows_of(measured)]
    known = measured["before"].get("top1")
    if known is not None and measured["after"].get("top1") is None:
        rows.insert(0, ("top-1", percent(known), "not measured", "", ""))
    if not rows:
        return ""
    lines = ["| | original | this model | change | 95 % interval |", "|---|---:|---:|---:|---|"]
    lines += [f"| {' | '.join(map(cell, row))} |" for row in rows]
    told = _seen(record, measured)
    return "## Before and after\n\n" + "\n".join(lines) + (f"\n\n{told}" if told else "")


def _seen(record: Record, measured: Mapping[str, Any]) -> str:
    images = measured.get("num_samples")
    if measured["after"].get("top1") is not None:
        count = f"{images} images of " if images else ""
        return f"Scores are those on {count}`{cell(evaluated_on(record) or 'the evaluation images')}`."
    if measured["after"].get("agreement") is not None or measured["after"].get("cosine") is not None:
        return f"Compared with the original on {images or 'some'} calibration images that no fit saw, without labels."
    return ""


def evaluated_on(record: Record) -> str | None:
    """The name of the images with labels."""
    options = record.options
    return _name(options.get("eval_data_dir") or options.get("dataset") or options.get("data_dir"))


def how_made(record: Record) -> str:
    """The command, and the images that it calibrated on."""
    parts = []
    command = record.results.get(COMMAND)
    if command:
        parts.append(f"```bash\n{' '.join(str(command).split()).replace('```', '')}\n```")
    images = _name(record.options.get("data_dir") or record.options.get("dataset"))
    if images:
        count, seed = record.options.get("num_samples"), record.options.get("seed")
        number = f"Up to {count} images" if count else "Images"
        drawn = "" if seed is None or not count else f" (drawn with seed {seed})"
        parts.append(f"{number} of `{cell(images)}`{drawn} were used to calibrate or train, without labels.")
    return "## How it was made\n\n" + "\n\n".join(parts) if parts else ""


def what_was_done(record: Record) -> str:
    """The plan in a few lines."""
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


def limits(record: Record) -> str:
    """What is not known of this model, and where its figures may not hold."""
    plan, measured = record.plan, measured_in(record)
    if not plan.layers and not plan.merge_tokens:
        return ""
    after, lines = measured["after"], []
    if after.get("top1") is None:
        lines.append("Accuracy was not measured: judge it on labelled images of your own before you use it.")
    images = measured.get("num_samples")
    if after.get("top1") is None and after.get("agreement") is not None and images and images < FEW_IMAGES:
        lines.append(f"Agreement with the original comes from {images} images only.")
    if record.options.get("data_dir") or record.options.get("dataset"):
        lines.append("It was fitted to images like those named above; on images of another kind it may lose more.")
    else:
        lines.append("No images were used: it was solved from the weights alone, which loses much accuracy.")
    if after.get("latency_ms") is not None:
        lines.append("Times are those of the machine that made it; `vitcompact bench` measures them on yours.")
    if any(plan.merge_tokens):
        lines.append("Tokens merge: patch features of merged tokens are copies of their mean.")
    if plan.form != "folded":
        lines.append("It is in training form: `vitcompact fold` gives the fast one.")
    lines.append("What limits the original (its data, its biases) limits this model too; robustness was not measured.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def more_figures(record: Record) -> str:
    """Whatever else was measured, by its name in `vitcompact.json`."""
    results = {k: v for k, v in to_plain(record.results).items() if not (k in _SHOWN_ELSEWHERE and k != "agreement")}
    if not isinstance(record.results.get("max_abs_diff"), float):
        results.pop("agreement", None)
    rows = [f"| {name} | {_number(name, value)} |" for name, value in _leaves(results)]
    return "## More figures\n\n" + "\n".join(["| | |", "|---|---|", *rows]) if rows else ""


def _leaves(results: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers and texts with their dotted names; lists and nulls are left to `vitcompact.json`."""
    for key, value in results.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float, str)):
            yield f"{prefix}{key}", value


def _number(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return cell(str(value))
    unit = " %" if name.rpartition(".")[2] in _PERCENT else ""
    return (f"{value:,}" if isinstance(value, int) else f"{value:.4g}") + unit


def _name(images: object) -> str | None:
    """A data set's name without the folders it lies in."""
    if not images:
        return None
    text = str(images).rstrip("/")
    return text.rpartition("/")[2] if "/" in text and not text.startswith(("hfds/", "wds/", "torch/")) else text


def cell(text: str) -> str:
    """Text that cannot break out of a table cell or a line."""
    return " ".join(printable(text).split()).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")
