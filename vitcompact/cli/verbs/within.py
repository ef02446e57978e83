"""`vitcompact convert` with a limit: the smallest model that loses no more than it may."""

from __future__ import annotations

from contextlib import ExitStack

from vitcompact.benchmarking.setup import open_device
from vitcompact.cli import images, inputs
from vitcompact.cli.command import Options, of_kind
from vitcompact.cli.console import Console
from vitcompact.cli.render.convert import convert_tables, within_table
from vitcompact.cli.report import check_report, command_of, heading, write_report
from vitcompact.cli.report.conversion import conversion_page
from vitcompact.cli.spoken import flags
from vitcompact.cli.verbs import common
from vitcompact.cli.workspace import Workspace
from vitcompact.compaction import convert_within
from vitcompact.data import evaluation_batches
from vitcompact.errors import DataError, ThresholdError, UsageError
from vitcompact.options.selection import LimitOptions
from vitcompact.options.surgery import SurgeryOptions
from vitcompact.planning.curves import Curves


def run_within(
    options: Options, given: frozenset[str], space: Workspace | None, console: Console, held: ExitStack
) -> None:
    """Look for the smallest model that holds a limit, and write it; where none does, the best that was found.

    Raises:
        ThresholdError: none does.
    """
    limit, asked = of_kind(LimitOptions, options).only_one
    unfit = {*inputs.RATIO_NAMES, *inputs.TARGET_NAMES[:3], *inputs.PAIR_NAMES, "method", "plan", "dry_run"}
    if clash := sorted(name for name in given if name in unfit):
        raise UsageError(f"{flags()[limit]} decides how much is compacted: leave out {flags()[clash[0]]}")
    options = images.with_recorded_images(options, given, space, console)
    images.require_images(options, flags()[limit])
    of_kind(SurgeryOptions, options)
    open_device(options.device)
    if options.report is not None:
        check_report(options.report, png=False)
    out = common.out_for(options, space, "convert", held)
    evaluation = images.evaluation_set(options) if limit == "max_drop" else None
    if limit == "max_drop" and evaluation is None:
        raise DataError("--max-drop is judged on labelled images: give --eval-data-dir, or use --min-agreement")
    original = inputs.open_to_convert(options, given, space, console)
    calibration = images.calibration_images(original.model, options, console)
    assert calibration is not None  # images were required
    names = (
        "ops",
        "merge_tokens",
        "keep",
        "only",
        "protect",
        "size_multiple",
        "reconstruct",
        "cache_gb",
        "batch_size",
        "device",
        "seed",
    )
    found = convert_within(
        original.model,
        calibration,
        max_drop=options.max_drop,
        min_agreement=options.min_agreement,
        min_cosine=options.min_cosine,
        evaluation=None if evaluation is None else evaluation_batches(original.model, evaluation),
        curves=Curves(None if space is None else space.curves_file),
        progress=console.progress,
        **{name: getattr(options, name) for name in names},
    )
    typed = command_of("convert", options, given)
    document = common.write_converted(found.model, options, original, out, typed)
    document["within"] = common.plain(found.to_json())
    if options.report is not None:
        page = conversion_page(original.model, found.model, calibration, document, options.device)
        write_report({**page, **heading("convert", options, given, original)}, options.report)
        console.note(f"drawn into {options.report}")
    common.record_converted(space, original, options, document, out)
    console.result(document, within_table(document["within"]), *convert_tables(document))
    if not found.held:
        raise ThresholdError(f"{flags()[limit]} {asked:g} was missed; the best that was found is in {out}")
    console.note(f"written to {out}; next: {common.follow(options, 'finetune', space=space)}")
