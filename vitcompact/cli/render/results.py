"""The tables of `finetune`, `fold`, `export`, `eval` and `demo`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from vitcompact.cli.progress import duration
from vitcompact.cli.render.common import (
    UNKNOWN,
    big,
    change,
    interval,
    number,
    pairs,
    percent,
    size,
    table,
    tiny,
    titled,
)

PROBES = {"knn": "votes of the nearest neighbours", "linear": "a linear layer"}


def finetune_table(document: Mapping[str, Any]) -> Group:
    """Accuracy before and after, of what was evaluated."""
    top1 = document["top1"]
    rows = [
        ("steps", f"{document['steps']} ({document['epochs']:.2f} epochs)"),
        ("top-1 before", percent(top1["before"])),
        ("top-1 after", percent(top1["after"])),
        ("same top-1 class as the original", number(document["agreement"])),
    ]
    if document.get("cosine") is not None:
        rows.append(("cosine with the original's features", number(document["cosine"])))
    if {value for _, value in rows[1:]} == {UNKNOWN}:
        rows.append(("evaluated", "no: there were no evaluation images (--eval-data-dir)"))
    if document.get("seconds") is not None:
        rows.insert(1, ("time", duration(document["seconds"])))
    if document.get("lr") is not None:
        rows.insert(1, ("learning rate", f"{document['lr']:.1e}"))
    return pairs("Fine-tuned", rows)


def fold_table(document: Mapping[str, Any]) -> Group:
    """Parity and size."""
    rows = [
        ("largest difference of outputs", tiny(document["max_abs_diff"])),
        ("relative to the largest output, also on perturbed weights", f"{tiny(document['rel_diff'])} (at most 2e-04)"),
        ("after casting to the saved dtype", tiny(document["cast_max_abs_diff"])),
        ("same top-1 class", number(document["agreement"])),
        ("parameters", big(document["params"])),
        ("MACs per image", big(document["macs"])),
    ]
    if document.get("bytes"):
        rows.append(("file size", size(document["bytes"])))
    merging = document.get("merging")
    if merging is not None:
        numbers = merging["merge_tokens"]
        each = str(numbers[0]) if len(set(numbers)) == 1 else ", ".join(map(str, numbers))
        rows += [
            ("pairs of tokens merged per block", each),
            ("same top-1 class as without merging", number(merging["agreement"])),
            ("cosine with the outputs without merging", number(merging["cosine"])),
        ]
    return pairs("Folded: verified against the unfolded model", rows)


def export_table(document: Mapping[str, Any]) -> Group:
    """How close the file is, and how large."""
    rows = [("number format", document["precision"]), ("checked with", document["checked_with"])]
    if document["max_abs_diff"] is not None:
        rows += [
            ("largest difference of outputs", tiny(document["max_abs_diff"])),
            ("relative to the largest output", tiny(document["rel_diff"])),
            ("same top-1 class", number(document["agreement"])),
        ]
    rows.append(("size", f"{document['bytes'] / 1e6:.2f} MB"))
    return pairs(f"Exported to {document['out']}", rows)


def eval_tables(document: Mapping[str, Any]) -> list[RenderableType]:
    """Scores of a classifier beside those of its reference, or of a feature extractor."""
    rows = [("images", str(document["num_samples"]) + _skipped(document))]
    probe = document.get("probe")
    if probe is not None:
        rows.append(("probe", f"{PROBES[probe['name']]}, fitted to {probe['num_samples']} images"))
    compared = [
        ("cosine", "cosine of pooled features"),
        ("patch_cosine", "cosine of patch tokens"),
        ("neighbour_agreement", "same nearest neighbour"),
    ]
    if "top1" in document:
        same = ("agreement", "same top-1 class as the reference")
        compared = [same, *compared] if probe is not None else [same, ("cosine", "cosine of the logits")]
        if "reference" not in document:
            rows += [("top-1", percent(document["top1"])), ("top-5", percent(document["top5"]))]
    for key, label in compared:
        if document.get(key) is not None:
            within = interval(document.get(f"{key}_interval"), 3)
            rows.append((label, number(document[key]) + (f" (95 % interval {within})" if within else "")))
    parts: list[RenderableType] = [pairs(f"{document['model']} on {document['images']}", rows)]
    return [_beside_reference(document), *parts] if "reference" in document else parts


def _beside_reference(document: Mapping[str, Any]) -> Group:
    columns = ("reference", "model", "difference", "95 % interval")
    found = table("", *columns, right=columns)
    within = interval(document["change"]["top1_interval"], sign=True)
    for key, label in (("top1", "top-1"), ("top5", "top-5")):
        before, after = document["reference"][key], document[key]
        found.add_row(
            label, percent(before), percent(after), f"{after - before:+.2f} points", within if key == "top1" else ""
        )
    return titled(f"{document['model']} beside {document.get('reference_model') or 'the reference'}", found)


def demo_tables(document: Mapping[str, Any]) -> list[RenderableType]:
    """Before and after of the whole job, stage by stage."""
    numbers = ("top-1", "parameters", "MACs", "times as fast", "took")
    found = table("", *numbers, right=numbers)
    fast = _times_as_fast(document)
    for stage in document["stages"]:
        found.add_row(
            Text(stage["stage"]),
            percent(stage["top1"]),
            big(stage["params"]),
            big(stage["macs"]),
            fast.get(stage["stage"], ""),
            duration(stage["seconds"]),
        )
    first, last = document["stages"][0], document["stages"][-1]
    lines = []
    for key, name in (("params", "parameters"), ("macs", "MACs")):
        lines.append(f"{name} {change(first[key], last[key])}")
    within = interval(document.get("speedup_interval"))
    lines.append(
        f"{document['speedup']:.2f} times as fast" + (f" (95 % interval {within}, run by run)" if within else "")
    )
    if first["top1"] is not None and last["top1"] is not None:
        lines.append(f"top-1 {last['top1'] - first['top1']:+.2f} points")
    title = "Demo: handwritten digits, top-1 on held-out images"
    return [titled(title, found), *_side_by_side(document), Text(", ".join(lines))]


def _times_as_fast(document: Mapping[str, Any]) -> dict[str, str]:
    """By stage. Medians of two runs are no comparison, so milliseconds are left to the JSON document."""
    stages = [stage["stage"] for stage in document["stages"]]
    fast = {stages[0]: "1.00", stages[-1]: f"{document['speedup']:.2f}"}
    if document.get("pair_speedup") is not None:
        fast[stages[3]] = f"{document['pair_speedup']:.2f}"
    return fast


def _side_by_side(document: Mapping[str, Any]) -> list[RenderableType]:
    """The budget beside the paper's pair of the same MACs; nothing where the pair was not made."""
    if document.get("pair_speedup") is None:
        return []
    first, _, pair, tuned, budget, last = document["stages"]
    columns = ("original", "the pair", "a budget")
    found = table("", *columns, right=columns)
    found.add_row("top-1, nothing trained", *(percent(each["top1"]) for each in (first, pair, budget)))
    found.add_row("top-1, finetuned", "", percent(tuned["top1"]), "")
    found.add_row("MACs", *(big(each["macs"], like=first["macs"]) for each in (first, pair, last)))
    found.add_row("parameters", *(big(each["params"], like=first["params"]) for each in (first, pair, last)))
    found.add_row("times as fast", "1.00", f"{document['pair_speedup']:.2f}", f"{document['speedup']:.2f}")
    ends = (interval(document[f"{name}speedup_interval"]) for name in ("pair_", ""))
    found.add_row("95 % interval", "", *ends)
    return [titled("Side by side, at the same MACs", found)]


def _skipped(document: Mapping[str, Any]) -> str:
    count = document.get("skipped")
    return f" ({count} unreadable ones skipped)" if count else ""
