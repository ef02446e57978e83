"""`vitcompact analyze`."""

from __future__ import annotations

from contextlib import nullcontext

from vitcompact.analysis import analyze
from vitcompact.benchmarking.setup import open_device
from vitcompact.cli import images, inputs
from vitcompact.cli.command import Options
from vitcompact.cli.console import Console
from vitcompact.cli.render.analysis import analysis_tables
from vitcompact.cli.report import check_report, heading, write_report
from vitcompact.cli.spoken import flags
from vitcompact.cli.verbs import common
from vitcompact.cli.workspace import Workspace
from vitcompact.data import shared_images
from vitcompact.errors import UsageError
from vitcompact.planning.curves import Curves


def run(options: Options, given: frozenset[str], console: Console) -> None:
    """Analyze SOURCE; the workspace keeps source, images, selection and result."""
    first, space = common.processes_of(console).first, Workspace(options.workdir)
    with space.held() if first else nullcontext():  # of several processes the first writes
        _run(options, given, space, console)


def _run(options: Options, given: frozenset[str], space: Workspace, console: Console) -> None:
    options = inputs.given_source(options)
    if options.source is None:
        raise UsageError("no model was given: name a timm model, a directory or a weights file (see analyze --help)")
    options = inputs.with_default(options, given, console)
    if several := inputs.targets_of(options):
        raise UsageError(f"analyze shows the whole curve: give {flags()[several[0]]} one share")
    inputs.check_selection(options)
    open_device(options.device)
    processes = common.processes_of(console)
    if options.report is not None and processes.first:
        check_report(options.report)
    original = inputs.open_to_convert(options, given, None, console)
    calibration = images.calibration_images(original.model, options, console, processes)
    report = analyze(
        original.model,
        None if calibration is None else shared_images(calibration, processes),
        **inputs.selection_arguments(options),
        curves=Curves(space.curves_file),
        device=options.device,
        progress=console.progress,
    )
    if not processes.first:
        return
    document = {**report.to_json(), "options": inputs.effective(options)}
    width = original.loaded.dtype.itemsize
    document["bytes"] = width * report.cost.params
    document["predicted"]["bytes"] = width * report.predicted.params
    space.write_document(space.analysis_file, common.plain(document))
    selection = {name: getattr(options, name) for name in inputs.SELECTION_NAMES}
    common.record(space, original, options, selection=selection)
    if options.report is not None:
        page = report.to_page()
        for side, cost in (("before", document), ("after", document["predicted"])):
            page["measured"][side]["bytes"] = cost["bytes"]
        write_report({**page, **heading("analyze", options, given, original)}, options.report)
        console.note(f"drawn into {options.report}")
    console.result(document, *analysis_tables(document))
    if not document["layers"]:
        console.note("no attention head can be hallucinated here: only the FFNs are compacted")
    console.note(f"recorded in {space.path}; next: {space.command('convert')}")
