"""`vitcompact convert`."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vitcompact.analysis.analyze import predicted_cost
from vitcompact.benchmarking.setup import open_device
from vitcompact.cli import images, inputs
from vitcompact.cli.command import Options, of_kind
from vitcompact.cli.console import Console
from vitcompact.cli.render.convert import convert_tables, plan_tables, targets_table
from vitcompact.cli.report import check_report, command_of, heading, write_report
from vitcompact.cli.report.conversion import conversion_page
from vitcompact.cli.spoken import flags
from vitcompact.cli.verbs import common
from vitcompact.cli.verbs.within import run_within
from vitcompact.cli.workspace import Workspace
from vitcompact.data import ImageBatches, shared_images
from vitcompact.errors import UsageError
from vitcompact.options.selection import LimitOptions
from vitcompact.options.surgery import SurgeryOptions
from vitcompact.planning.curves import Curves
from vitcompact.plans.schema import Plan
from vitcompact.surgery import convert
from vitcompact.surgery import plan as make_plan
from vitcompact.utils.files import claimed
from vitcompact.utils.processes import Processes
from vitcompact.utils.reading import user_path


def run(options: Options, given: frozenset[str], console: Console) -> None:
    """Convert SOURCE into OUT, or only plan it."""
    with ExitStack() as held:
        _run(options, given, console, held)


def _run(options: Options, given: frozenset[str], console: Console, held: ExitStack) -> None:
    options = inputs.given_source(options)
    processes = common.processes_of(console)
    space = common.workspace_for(options, held, processes)
    if of_kind(LimitOptions, options).given:
        if processes.several:
            raise UsageError(f"{flags()['max_drop']} looks for a size in one process: start it without torchrun")
        run_within(options, given, space, console, held)
        return
    options = inputs.with_default(_filled(options, given, space, console), given, console)
    plan = None if options.plan is None else _read_plan(options, given)
    wanted = _each_target(options, space)
    for one in wanted:
        inputs.check_selection(one, plan)
    of_kind(SurgeryOptions, options)
    open_device(options.device)
    _check_report(options, wanted, processes)
    outs = [] if options.dry_run else [common.out_for(one, space, "convert", held, processes) for one in wanted]
    plan_file = _plan_file(options, space) if options.dry_run else None
    if plan_file is not None and processes.first:
        held.enter_context(claimed(plan_file))
    original = inputs.open_to_convert(options, given, space, console)
    calibration = images.calibration_images(original.model, options, console, processes)
    shared = None if calibration is None else shared_images(calibration, processes)
    curves = Curves(None if space is None else space.curves_file)
    if plan_file is not None:
        _plan_only(options, original, shared, plan, plan_file, curves, console)
        return
    documents = []
    for one, out in zip(wanted, outs, strict=True):
        arguments = {**_arguments(one, shared, console), "plan": plan, "seed": options.seed, "curves": curves}
        model = convert(original.model, **arguments)
        if not processes.first:
            continue
        typed = command_of("convert", one, given)
        documents.append(common.write_converted(model, one, original, out, typed))
        if options.report is not None:
            page = conversion_page(original.model, model, calibration, documents[0], options.device)
            write_report({**page, **heading("convert", options, given, original)}, options.report)
            console.note(f"drawn into {options.report}")
    if not processes.first:
        return
    if len(wanted) > 1:
        console.result({"budgets": documents}, targets_table(documents))
        console.note(
            f"written to {', '.join(map(str, outs))}; next: {common.follow(wanted[0], 'finetune', space=None)}"
        )
        return
    common.record_converted(space, original, options, documents[0], outs[0])
    console.result(documents[0], *convert_tables(documents[0]))
    console.note(f"written to {outs[0]}; next: {common.follow(options, 'finetune', space=space)}")


def _check_report(options: Options, wanted: list[Options], processes: Processes) -> None:
    """Refuse a report of a plan only, or of several conversions.

    Raises:
        UsageError: see above and `check_report`.
    """
    if options.report is None:
        return
    if options.dry_run:
        raise UsageError("--report draws what was converted: leave out --dry-run, or let analyze draw the plan")
    if len(wanted) > 1:
        raise UsageError(
            "--report draws one conversion: give one share, and put the results beside each other by compare"
        )
    if processes.first:
        check_report(options.report, png=False)


def _each_target(options: Options, space: Workspace | None) -> list[Options]:
    """The options for each of several targets, with a directory of its own in OUT; else those that were given.

    Raises:
        UsageError: a plan only, which is of one target.
    """
    if (several := inputs.targets_of(options)) is None:
        return [options]
    name, shares = several
    if options.dry_run:
        raise UsageError(f"--dry-run plans one target: give {flags()[name]} one share")
    if len(set(shares)) < len(shares):
        raise UsageError(f"{flags()[name]}: a share is there twice in {','.join(f'{share:g}' for share in shares)}")
    if options.out is None:
        assert space is not None  # a verb without a workspace was given both ends
        base = space.budgets
    else:
        base = user_path(str(options.out))
    unit = name.removeprefix("target_")
    return [dataclasses.replace(options, **{name: share}, out=str(base / f"{unit}-{share:g}")) for share in shares]


def _arguments(options: Options, calibration: ImageBatches | None, console: Console) -> dict[str, Any]:
    """What `plan` and `convert` of the library both take."""
    return {
        **inputs.selection_arguments(options),
        **dataclasses.asdict(of_kind(SurgeryOptions, options)),
        "images": calibration,
        "batch_size": options.batch_size,
        "device": options.device,
        "progress": console.progress,
    }


def _filled(options: Options, given: frozenset[str], space: Workspace | None, console: Console) -> Options:
    """The images and the selection of the analysis, where none were given."""
    options = images.with_recorded_images(options, given, space, console)
    if space is None or options.plan is not None:
        return options
    recorded = inputs.recorded_selection(space.state.selection, given, options.method)
    return inputs.from_workspace(options, given, recorded, inputs.SELECTION_NAMES, space, console)


def _read_plan(options: Options, given: frozenset[str]) -> Plan:
    """The plan in `--plan FILE`, which may also be a document of ours that holds one."""
    chosen = given & {*inputs.SELECTION_NAMES, "method", "terms", "filter_rank", "branches"} - {"keep"}
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    clash = sorted(name for name in chosen if getattr(options, name) != defaults[name])
    if clash:
        names = ", ".join(flags()[name] for name in clash)
        raise UsageError(f"--plan says what is compacted; leave out {names}")
    path = user_path(str(options.plan))
    return Plan.load(path)


def _plan_only(
    options: Options,
    original: inputs.Original,
    calibration: ImageBatches | None,
    plan: Plan | None,
    path: Path,
    curves: Curves,
    console: Console,
) -> None:
    """Print and write the plan."""
    before = common.cost_of(original.model)
    if plan is None:
        plan = make_plan(original.model, **_arguments(options, calibration, console), curves=curves)
    if not common.processes_of(console).first:
        return
    after = predicted_cost(original.model, plan)
    document = {
        **common.before_after(before, after),
        **common.budget_of(plan),
        "plan": plan.to_json(),
        "plan_file": str(path),
        "out": None,
        "options": inputs.effective(options),
    }
    plan.save(path)
    console.result(document, *plan_tables(document))
    kept = "" if options.keep in (None, "both") else f" (which says nothing of --keep {options.keep}: give both again)"
    console.note(f"plan written to {path}{kept}; nothing else was written")


def _plan_file(options: Options, space: Workspace | None) -> Path:
    """The workspace's plan; where OUT was given, a file beside it, since OUT itself is left to the conversion.

    Raises:
        UsageError: there is a file of that name that holds no plan.
    """
    if space is not None:
        return space.plan_file
    out = user_path(str(options.out))
    path = out if out.suffix == ".json" else out.with_name(f"{out.name}.plan.json")
    if path.exists():
        try:
            Plan.load(path)
        except UsageError as error:
            raise UsageError(f"{path} is not overwritten: it exists and holds no plan; give another OUT") from error
    return path
