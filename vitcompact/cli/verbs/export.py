"""`vitcompact export`."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from vitcompact.checkpoint import Provenance, load_source
from vitcompact.cli import images, inputs
from vitcompact.cli.command import Options, of_kind
from vitcompact.cli.console import Console
from vitcompact.cli.render.results import export_table
from vitcompact.cli.workspace import Workspace
from vitcompact.data import CalibrationImages
from vitcompact.errors import DataError, UsageError
from vitcompact.exporting import FORMATS, check_exportable, export, format_of, is_exported
from vitcompact.exporting.output import check_file
from vitcompact.options.exporting import ExportOptions


def run(options: Options, given: frozenset[str], console: Console) -> None:
    """Write MODEL as FILE, proven by the runtime that will serve it."""
    options, space = _places(options, console)
    wanted, form = of_kind(ExportOptions, options), format_of(options.out)
    check_file(options.out, form, options.overwrite)
    form.check(wanted)
    options = images.with_recorded_images(options, given, space, console) if options.int8 else options
    if options.int8 and not images.has_images(options):
        raise DataError("--int8 is calibrated on images: give --data-dir with some hundred of them")
    loaded = load_source(options.source)
    check_exportable(loaded.model)
    result = export(
        loaded.model,
        options.out,
        **dataclasses.asdict(wanted),
        images=_calibration(loaded.model, options, console) if options.int8 else None,
        overwrite=options.overwrite,
        **_origin(options.source, loaded.provenance),
        seed=options.seed,
        progress=console.progress,
    )
    document = {**result.to_json(), "model": options.source, "options": inputs.effective(options)}
    console.result(document, export_table(document))
    console.note(f"written to {result.out}; run it: {result.how_to_run}")


def _places(options: Options, console: Console) -> tuple[Options, Workspace | None]:
    """MODEL and FILE; with FILE alone, MODEL is the workspace's latest.

    Raises:
        UsageError: no FILE, or an exported file as MODEL.
    """
    source, out = options.source, options.out
    if out is None and source is not None and source.lower().endswith(tuple(FORMATS)):
        source, out = None, source
    if out is None:
        accepted = ", ".join(FORMATS)
        raise UsageError(f"no file was named: give one whose suffix says the format ({accepted}), as in model.onnx")
    if is_exported(source):
        raise UsageError(f"{source} is an exported file: give the directory that it was made from")
    if source is not None:
        return dataclasses.replace(options, source=source, out=out), None
    space = Workspace(options.workdir)
    verb, path = space.latest()
    console.note(f"from the workspace {space.path}: MODEL {path} (by {verb})")
    return dataclasses.replace(options, source=str(path), out=out), space


def _origin(source: str, loaded: Provenance) -> dict[str, Any]:
    """What the file records of the model that MODEL was made from; of a model that is its own original, itself."""
    recorded, original = inputs.lineage(source)
    origin = recorded or loaded
    return {
        "original": dataclasses.replace(origin, source=inputs.absolute_source(origin)),
        "original_options": original,
    }


def _calibration(model: nn.Module, options: Options, console: Console) -> CalibrationImages:
    found = CalibrationImages(model, images.training_set(options), progress=console.progress)
    console.note(f"calibrating on {found.num_samples} images of {found.description}")
    return found
