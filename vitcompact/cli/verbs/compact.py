"""`vitcompact compact`."""

from __future__ import annotations

import dataclasses
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from vitcompact.benchmarking.setup import open_device
from vitcompact.checkpoint.stored import weight_bytes
from vitcompact.cli import images, inputs
from vitcompact.cli.command import Options, of_kind
from vitcompact.cli.console import Console
from vitcompact.cli.images import training_set
from vitcompact.cli.render.compact import compact_tables
from vitcompact.cli.report import check_report, command_of, heading, write_report
from vitcompact.cli.verbs import common
from vitcompact.cli.workspace import Workspace
from vitcompact.compaction import compact
from vitcompact.data import (
    Augment,
    CalibrationImages,
    TrainingBatches,
    evaluation_batches,
    is_apart,
    training_loader,
)
from vitcompact.data.apart import EVERY
from vitcompact.exporting import export, format_of
from vitcompact.exporting.output import check_file
from vitcompact.options.compaction import CompactionOptions
from vitcompact.options.exporting import ExportOptions
from vitcompact.planning.serving import Serving


def run(options: Options, given: frozenset[str], console: Console) -> None:
    """Do the whole job on SOURCE and write the folded model into OUT."""
    with ExitStack() as held:
        _run(options, given, console, held, time.monotonic())


def _run(options: Options, given: frozenset[str], console: Console, held: ExitStack, began: float) -> None:
    options = inputs.given_source(options)
    space = common.workspace_for(options, held)
    options = images.with_recorded_images(options, given, space, console)
    asked = of_kind(CompactionOptions, options)
    Serving.of(asked.latency_backend, asked.latency_batch, asked.latency_dtype)  # refused here if it cannot be
    images.require_images(options, "compact")
    open_device(options.device)
    out = common.out_for(options, space, "fold", held)
    report = _report_file(options, space, out)
    exported = _exported_file(options, out)
    original = inputs.open_to_convert(options, given, space, console)
    evaluation = images.optional_evaluation_set(options, console)
    wanted = options
    if evaluation is None and options.num_samples is not None:  # so many to work with, and those that judge
        wanted = dataclasses.replace(options, num_samples=round(options.num_samples * EVERY / (EVERY - 1)))
    calibration = images.calibration_images(original.model, wanted, console)
    assert calibration is not None  # images were required
    if evaluation is None:
        console.note(
            "no evaluation images (--eval-data-dir, or a split of --data-dir): a quarter of the calibration images "
            "judges, and is kept from everything else"
        )
    result = compact(
        original.model,
        calibration,
        **dataclasses.asdict(asked),
        began=began,
        evaluation=None if evaluation is None else evaluation_batches(original.model, evaluation),
        training=_training(original.model, options, calibration, evaluation is None),
        protect=options.protect,
        size_multiple=options.size_multiple,
        merge_tokens=options.merge_tokens,
        batch_size=options.batch_size,
        device=options.device,
        seed=options.seed,
        progress=console.progress,
    )
    dtype = common.saved_dtype(options, original.loaded)
    document = common.plain(result.to_json())
    sizes = weight_bytes(original.model, original.loaded.dtype), weight_bytes(result.model, dtype)
    for side, size in zip(("before", "after"), sizes, strict=True):
        document[side]["bytes"] = size
    page = result.to_page()
    for side in ("before", "after"):
        page["measured"][side]["bytes"] = document[side]["bytes"]
    common.save_model(
        *(result.model, out, options, _recorded(document), original.provenance, original.record.options, dtype),
        measured=page["measured"],
        command=command_of("compact", options, given),
    )
    with common.complete(out):
        if space is not None:
            space.write_document(space.plan_file, result.plan.to_json())
            common.record(space, original, options, stage=("fold", out))
        write_report({**page, **heading("compact", options, given, original)}, report)
    console.note(f"drawn into {report}")
    document |= {"report": str(report), "out": str(out)}
    if exported is not None:
        written = export(
            result.model,
            exported,
            overwrite=options.overwrite,
            original=dataclasses.replace(original.provenance, source=original.record.source),
            original_options=original.record.options,
            seed=options.seed,
            progress=console.progress,
        )
        document["exported"] = written.to_json()
        console.note(f"exported to {written.out}; run it: {written.how_to_run}")
    document["options"] = inputs.effective(options)
    console.result(document, *compact_tables(document))
    following = common.follow(options, *(["bench"] if evaluation is None else ["eval", "bench"]), space=space)
    console.note(f"written to {out}; next: {following}")


def _training(model: nn.Module, options: Options, images: CalibrationImages, apart: bool) -> TrainingBatches | None:
    """All images but those that judge; None where some of a stream do, of which none can be left out."""
    if apart and images.from_stream:
        return None
    without = {place for number, place in enumerate(images.places) if apart and is_apart(number)}
    data = training_set(options, num_samples=None)
    return training_loader(model, data, Augment(), without=without)


def _exported_file(options: Options, out: Path) -> Path | None:
    """The file of `--export`, beside OUT; refused early where it cannot be written."""
    if options.export is None:
        return None
    path = out.with_name(f"{out.name}.{options.export}")
    form = format_of(path)
    form.check(ExportOptions())
    return check_file(path, form, options.overwrite)


def _report_file(options: Options, space: Workspace | None, out: Path) -> Path:
    """`--report`, or a page in the workspace, or where both model and output were given, beside OUT."""
    path: Path | None = options.report
    if path is None:
        path = out.with_name(f"{out.name}.report.html") if space is None else space.path / "report.html"
    check_report(path)
    return path


def _recorded(document: dict[str, Any]) -> dict[str, Any]:
    """What is kept with the model, by measure: before and after."""
    sides = document["before"], document["after"]
    measures = {name: dict(zip(("before", "after"), (side[name] for side in sides), strict=True)) for name in sides[0]}
    told = {name: value for name, value in measures.items() if value["before"] is not None}
    return {**told, "reached": document["reached"], "num_samples": document["num_samples"], "steps": document["steps"]}
