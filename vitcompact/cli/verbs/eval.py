"""`vitcompact eval`."""

from __future__ import annotations

import dataclasses

from torch import nn

from vitcompact.benchmarking.setup import open_device
from vitcompact.checkpoint import LoadedModel
from vitcompact.cli import images, inputs
from vitcompact.cli.command import Options
from vitcompact.cli.console import Console
from vitcompact.cli.render.results import eval_tables
from vitcompact.cli.report import check_report, made_by, name_of, write_report
from vitcompact.cli.report.comparison import comparison_page
from vitcompact.cli.spoken import flags, spoken
from vitcompact.cli.verbs import common
from vitcompact.cli.workspace import Workspace
from vitcompact.data import DataOptions, evaluation_batches, probe_batches
from vitcompact.errors import DataError, UsageError, VitCompactError
from vitcompact.evaluation import MostChanged, evaluate
from vitcompact.models.forward import num_classes
from vitcompact.options.declare import declared
from vitcompact.options.evaluation import ProbeOptions


def run(options: Options, given: frozenset[str], console: Console) -> None:
    """Score MODEL, and compare it with a reference."""
    options, processes = inputs.given_source(options), common.processes_of(console)
    if processes.several and options.report is not None:
        raise UsageError(f"{flags()['report']} draws what one process has seen: start it without torchrun")
    open_device(options.device)
    if options.report is not None:
        check_report(options.report, png=False)
    taken = options.source is None
    space = Workspace(options.workdir)
    if taken:
        verb, path = space.latest()
        console.note(f"from the workspace {space.path}: MODEL {path} (by {verb})")
        options = dataclasses.replace(options, source=str(path))
    _check_probe(options, given)
    options, data = _images(options, given, space, console)
    fitted = None if options.probe is None else images.probe_set(options)
    loaded = inputs.open_original(options, given, None, console).loaded
    reference = _reference(options, space if taken else None, loaded.model, console)
    probe_images = None
    if fitted is None:
        batches = evaluation_batches(loaded.model, data)
    else:
        images.warn_overlap(fitted, data, console)
        probe_images, batches = probe_batches(loaded.model, fitted, data)
    if batches.num_samples is not None:
        processes.check_enough(f"{batches.num_samples} evaluation images", batches.num_samples)
    batches = batches.shared(processes.rank, processes.world) if processes.several else batches
    if processes.several and probe_images is not None:
        probe_images = probe_images.shared(processes.rank, processes.world)
    observer = None
    if options.report is not None and reference is not None:
        observer = MostChanged(bool(num_classes(loaded.model)) and options.probe is None)
    result = evaluate(
        loaded.model,
        batches,
        reference=None if reference is None else reference.model,
        probe=options.probe,
        probe_images=probe_images,
        probe_k=options.probe_k,
        device=options.device,
        amp_dtype=common.amp_dtype(options),
        progress=console.progress,
        observer=observer,
        processes=processes,
    )
    skipped = round(processes.sums(len(batches.skipped))[0])
    if not processes.first:
        return
    document = {
        **result.to_json(),
        "skipped": skipped,
        "model": str(options.source),
        "reference_model": None if reference is None else reference.provenance.source,
        "images": batches.description,
        **({} if probe_images is None else {"probe_images": probe_images.description}),
        "options": inputs.effective(options),
    }
    if options.report is not None:
        page = comparison_page(loaded, reference, result, observer, batches, options.device)
        made = made_by("eval", options, given, loaded.provenance)
        write_report({"title": name_of(options.source), **page, "made": made}, options.report)
        console.note(f"drawn into {options.report}")
    console.result(document, *eval_tables(document))


def _check_probe(options: Options, given: frozenset[str]) -> None:
    """Refuse options of a probe where there is none.

    Raises:
        UsageError: see above.
    """
    unused = sorted(given & {*declared(ProbeOptions)} - {"probe"})
    if options.probe is None and unused:
        raise UsageError(f"{flags()[unused[0]]} is for a probe: say which by --probe knn or --probe linear")


def _images(options: Options, given: frozenset[str], space: Workspace, console: Console) -> tuple[Options, DataOptions]:
    """The images given, or else the evaluation images that the workspace recorded; with the options so completed.

    Raises:
        DataError: neither.
    """
    if options.eval_data_dir is not None:
        data: DataOptions | None = images.training_set(options, data_dir=options.eval_data_dir, dataset="")
    elif images.has_images(options):
        data = images.training_set(options)
    else:
        options = images.with_recorded_images(options, given, space, console)
        data = images.evaluation_set(options)
        data = None if data is None else dataclasses.replace(data, num_samples=options.num_samples)
    if data is None:
        raise DataError(
            "no images to evaluate on: give --data-dir with labelled images (a folder or a .tar of class folders)"
        )
    recorded = images.calibrated_on(space)
    if recorded is not None:
        images.warn_overlap(recorded, data, console)
    return options, data


def _reference(options: Options, space: Workspace | None, model: nn.Module, console: Console) -> LoadedModel | None:
    """`--reference`, or the original of the workspace that MODEL came from, or the one in MODEL's own record.

    A recorded original that is not there any more is told; without a head or a probe there is nothing else to measure.
    """
    if options.reference is not None:
        return inputs.open_other(options.reference, str(options.source), options.img_size)
    if space is not None and space.state.source is not None:
        return inputs.recorded_original(space, console, "--reference")
    if inputs.lineage(str(options.source))[0] is None:
        return None
    try:
        return inputs.original_of(str(options.source), console, "--reference", options.img_size)
    except VitCompactError as error:
        if not num_classes(model) and options.probe is None:
            raise
        console.warning(f"not compared with the original: {spoken(str(error))}")
        return None
