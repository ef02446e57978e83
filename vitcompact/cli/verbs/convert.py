"""`vitcompact convert`."""

from __future__ import annotations

import copy
import dataclasses
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from vitcompact.analysis.analyze import predicted_cost
from vitcompact.benchmarking.setup import open_device
from vitcompact.cli import images, inputs
from vitcompact.cli.command import Options, of_kind
from vitcompact.cli.console import Console
from vitcompact.cli.render.convert import convert_tables, plan_tables
from vitcompact.cli.spoken import flags
from vitcompact.cli.verbs import common
from vitcompact.cli.workspace import Workspace
from vitcompact.data import CalibrationImages, from_tensor
from vitcompact.errors import UsageError
from vitcompact.options.surgery import SurgeryOptions
from vitcompact.plan.schema import Plan
from vitcompact.planning.planner import plan_for
from vitcompact.planning.selection import Selection
from vitcompact.surgery import convert
from vitcompact.utils.files import write_file


def run(options: Options, given: frozenset[str], console: Console) -> None:
    """Convert SOURCE into OUT, or only plan it."""
    with ExitStack() as held:
        _run(options, given, console, held)


def _run(options: Options, given: frozenset[str], console: Console, held: ExitStack) -> None:
    options = inputs.given_source(options)
    space = common.workspace_for(options, held)
    options = _filled(options, given, space, console)
    plan = None if options.plan is None else _read_plan(options, given)
    inputs.check_selection(options, plan)
    of_kind(SurgeryOptions, options)
    open_device(options.device)
    out = None if options.dry_run else common.out_for(options, space, "convert", held)
    plan_file = _plan_file(options, space) if options.dry_run else None
    original = inputs.open_original(options, given, space, console)
    calibration = images.calibration_images(original.model, options, console)
    if plan_file is not None:
        _plan_only(options, original, calibration, plan, plan_file, console)
        return
    assert out is not None
    before = common.cost_of(original.model)
    model = _convert(options, original.model, calibration, plan, console)
    results = common.before_after(before, common.cost_of(model))
    fidelity = model.vitcompact_fidelity
    if fidelity is not None:
        results["fidelity"] = common.plain({"fidelity": fidelity})["fidelity"]
    done = cast(Plan, model.vitcompact_plan)
    common.save_model(model, out, options, results, original.provenance, original.record.options)
    document = {**results, "plan": done.to_json(), "out": str(out), "options": inputs.effective(options)}
    if space is not None:
        common.record_inputs(space, original, options)
        space.write_document(space.plan_file, done.to_json())
        space.record_stage("convert", out)
    console.result(document, *convert_tables(document))
    follow = f"; next: vitcompact finetune{common.workdir_flag(options)}" if space is not None else ""
    console.note(f"written to {out}{follow}")


def _convert(
    options: Options,
    model: nn.Module,
    calibration: CalibrationImages | None,
    plan: Plan | None,
    console: Console,
) -> nn.Module:
    return convert(
        model,
        images=calibration,
        plan=plan,
        batch_size=options.batch_size,
        device=options.device,
        progress=console.progress,
        **_chosen(options),
    )


def _chosen(options: Options) -> dict[str, Any]:
    return {
        **inputs.selection_arguments(options),
        **dataclasses.asdict(of_kind(SurgeryOptions, options)),
        "seed": options.seed,
    }


def _filled(options: Options, given: frozenset[str], space: Workspace | None, console: Console) -> Options:
    """The images and the selection of the analysis, where none were given."""
    options = images.with_recorded_images(options, given, space, console)
    if space is None or options.plan is not None:
        return options
    recorded = inputs.recorded_selection(space.state.selection, given)
    return inputs.from_workspace(options, given, recorded, inputs.SELECTION_NAMES, space, console)


def _read_plan(options: Options, given: frozenset[str]) -> Plan:
    """The plan in `--plan FILE`, which may also be a document of ours that holds one."""
    clash = sorted(given & {*inputs.SELECTION_NAMES, "terms", "filter_rank", "branches"})
    if clash:
        names = ", ".join(flags()[name] for name in clash)
        raise UsageError(f"--plan says what is compacted; leave out {names}")
    path = Path(str(options.plan)).expanduser()
    try:
        return _plan_in(path)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or f"not JSON ({error})"
        raise UsageError(f"cannot read --plan {path}: {reason}") from error


def _plan_in(path: Path) -> Plan:
    data = json.loads(path.read_text(encoding="utf-8"))
    inner = data.get("plan") if isinstance(data, dict) else None
    return Plan.from_json(inner if isinstance(inner, dict) else data)


def _plan_only(
    options: Options,
    original: inputs.Original,
    calibration: CalibrationImages | None,
    plan: Plan | None,
    path: Path,
    console: Console,
) -> None:
    """Print and write the plan. Pairs of heads are chosen by the error after a refit: most of a conversion's work."""
    before = common.cost_of(original.model)
    if plan is None:
        plan = _make_plan(options, original.model, calibration, console)
    after = predicted_cost(original.model, plan)
    document = {
        **common.before_after(before, after),
        "plan": plan.to_json(),
        "plan_file": str(path),
        "out": None,
        "options": inputs.effective(options),
    }
    write_file(path, _json(plan.to_json()))
    console.result(document, *plan_tables(document))
    console.note(f"plan written to {path}; nothing else was written")


def _make_plan(options: Options, model: nn.Module, calibration: CalibrationImages | None, console: Console) -> Plan:
    """A budget is planned without converting."""
    chosen = inputs.selection_arguments(options)
    budget = inputs.budget_from(chosen)
    if budget is None or calibration is None:
        return cast(Plan, _convert(options, model, calibration, None, console).vitcompact_plan)
    original = copy.deepcopy(model).eval().to(device=options.device, dtype=torch.float32).requires_grad_(False)
    selection = Selection(only=options.only, protect=chosen["protect"], branches=options.branches)
    cache = options.cache_gb * 1e9
    batches = from_tensor(calibration, options.batch_size)
    weigh = "sensitivity" not in options.without
    return plan_for(
        original, batches, budget, selection=selection, weigh=weigh, cache_bytes=cache, progress=console.progress
    ).plan


def _plan_file(options: Options, space: Workspace | None) -> Path:
    """The workspace's plan; where OUT was given, a file beside it, since OUT itself is left to the conversion.

    Raises:
        UsageError: there is a file of that name that holds no plan.
    """
    if space is not None:
        return space.plan_file
    out = Path(str(options.out)).expanduser()
    path = out if out.suffix == ".json" else out.with_name(f"{out.name}.plan.json")
    if path.exists():
        try:
            _plan_in(path)
        except (UsageError, OSError, ValueError, RecursionError) as error:
            raise UsageError(f"{path} is not overwritten: it exists and holds no plan; give another OUT") from error
    return path


def _json(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
