"""`vitcompact bench`."""

from __future__ import annotations

import dataclasses

import torch

from vitcompact.benchmarking import bench
from vitcompact.benchmarking.setup import open_device
from vitcompact.checkpoint import LoadedModel
from vitcompact.cli import inputs
from vitcompact.cli.command import Options, of_kind
from vitcompact.cli.console import Console
from vitcompact.cli.render.bench import bench_tables
from vitcompact.cli.verbs import common
from vitcompact.cli.workspace import Workspace
from vitcompact.options.benchmarking import BenchOptions


def run(options: Options, given: frozenset[str], console: Console) -> None:
    """Time MODEL and its baseline alternately; --min-speedup is checked after the result is out."""
    options = inputs.given_source(options)
    open_device(options.device)
    taken = options.source is None
    space = Workspace(options.workdir) if taken else None
    if space is not None:
        verb, path = space.latest()
        console.note(f"from the workspace {space.path}: MODEL {path} (by {verb})")
        options = dataclasses.replace(options, source=str(path))
    model = inputs.open_original(options, given, None, console).model
    baseline = _baseline(options, space, console).model
    result = bench(
        model,
        baseline,
        **dataclasses.asdict(of_kind(BenchOptions, options)),
        device=options.device,
        dtype=None if options.dtype is None else getattr(torch, options.dtype),
        amp_dtype=common.amp_dtype(options),
        seed=options.seed,
        macs=(common.cost_of(model).macs, common.cost_of(baseline).macs),
        progress=console.progress,
    )
    document = {**result.to_json(), "model": str(options.source), "options": inputs.effective(options)}
    console.result(document, *bench_tables(document))
    for note in result.notes:
        console.warning(note)
    if options.min_speedup is not None:
        result.check_speedup(options.min_speedup)


def _baseline(options: Options, space: Workspace | None, console: Console) -> LoadedModel:
    """`--baseline`, or the original of the workspace that MODEL came from, or the one in MODEL's own record."""
    if options.baseline is not None:
        return inputs.open_other(options.baseline, str(options.source), options.img_size)
    if space is not None and space.state.source is not None:
        return inputs.recorded_original(space, console, "--baseline")
    return inputs.original_of(str(options.source), console, "--baseline")
