"""`vitcompact finetune`."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vitcompact.benchmarking.setup import open_device
from vitcompact.checkpoint import LoadedModel, load_source
from vitcompact.cli import images, inputs
from vitcompact.cli.command import Options, of_kind
from vitcompact.cli.console import Console
from vitcompact.cli.render.results import finetune_table
from vitcompact.cli.report import command_of
from vitcompact.cli.report.curve import can_draw, draw_curve
from vitcompact.cli.verbs import common
from vitcompact.cli.workspace import Workspace, command
from vitcompact.data import Augment, check_policy, evaluation_batches, training_loader
from vitcompact.errors import Interrupted
from vitcompact.options.logs import LogOptions
from vitcompact.reporting.measures import measured_of
from vitcompact.training import FinetuneResult, TrainOptions, finetune
from vitcompact.training.aside import OPTIONS_NAME
from vitcompact.training.course import COURSE, STEPS_NAME, losses
from vitcompact.utils.reading import read_json, user_path

CURVE_NAME = "loss.png"
_OF_THE_COMMAND = ("source", "out", "workdir", "teacher")


def run(options: Options, given: frozenset[str], console: Console) -> None:
    """Distil MODEL from its original and save the result in OUT."""
    with ExitStack() as held:
        _run(options, given, console, held)


def _run(options: Options, given: frozenset[str], console: Console, held: ExitStack) -> None:
    ends = [str(end) for end in (options.source, options.out) if end is not None]
    processes = common.processes_of(console)
    options, given = _continued(options, given, console)
    space = common.workspace_for(options, held, processes)
    training, augment, log = of_kind(TrainOptions, options), of_kind(Augment, options), of_kind(LogOptions, options)
    if augment.aa is not None:
        check_policy(augment.aa)
    open_device(options.device)
    out = common.out_for(options, space, "finetune", held, processes)
    taken = options.source is None
    options = common.model_from_workspace(options, space, "finetune", console)
    options = images.with_recorded_images(options, given, space, console)
    images.require_images(options, "finetune")
    if processes.first:
        common.check_kept(out, options, space)
    loaded = load_source(str(options.source))
    model = loaded.model
    teacher = _teacher(options, space if taken else None, console)
    batches = training_loader(model, images.training_set(options), augment)
    console.note(f"learning from {batches.num_samples} images of {batches.description}")
    evaluation = images.optional_evaluation_set(options, console)
    images.warn_overlap(images.training_set(options), evaluation, console)
    if evaluation is None:
        console.note("no evaluation images (--eval-data-dir, or a split of --data-dir): top-1 will not be measured")
    state_dir = _state_dir(out, space)
    try:
        result = finetune(
            model,
            teacher.model,
            batches,
            options=training,
            evaluation=None if evaluation is None else evaluation_batches(model, evaluation),
            device=options.device,
            state_dir=state_dir,
            resume=options.resume,
            progress=console.progress,
            processes=processes,
            log=log,
            asked=_asked(options),
        )
    except Interrupted as error:
        if "`resume='auto'`" not in str(error):
            raise
        again = command("finetune", *ends, "--resume", "auto", workdir=options.workdir)
        raise Interrupted(f"{error}: {again}") from error
    if not processes.first:
        return
    measured = common.plain(result.to_json())
    provenance, original = inputs.lineage(str(options.source))
    dtype = common.saved_dtype(options, loaded)
    card = common.measured_before(str(options.source))
    scores = {"top1": result.top1_after, "agreement": result.agreement, "cosine": result.cosine}
    costs = {name: card["after"][name] for name in ("params", "macs", "bytes") if name in card["after"]}
    card = measured_of((card["before"], {**costs, **{k: v for k, v in scores.items() if v is not None}}))
    common.save_model(
        *(result.model, out, options, measured, provenance or teacher.provenance, original, dtype),
        measured=card,
        command=command_of("finetune", options, given),
        beside=_course(state_dir, result, console),
    )
    if space is not None:
        recorded = images.recorded_images(options)
        data = {**space.state.data, **recorded}
        with common.complete(out):
            space.record(data=data, images=images.fingerprint_of(options), stage=("finetune", out))
    document = {**measured, "out": str(out), "options": inputs.effective(options)}
    console.result(document, finetune_table(document))
    following = common.follow(options, "fold", space=space)
    console.note(f"written to {out}; next: {following}")


def _course(state_dir: Path, result: FinetuneResult, console: Console) -> dict[str, bytes | Path]:
    """What OUT keeps of the run's course: its files, and a picture of them where there is something to draw it with."""
    found: dict[str, bytes | Path] = {name: state_dir / name for name in COURSE if (state_dir / name).is_file()}
    if STEPS_NAME not in found:
        return found
    if can_draw():
        found[CURVE_NAME] = draw_curve(losses(state_dir / STEPS_NAME), result.history)
    else:
        console.note(f"no {CURVE_NAME} is drawn: pip install 'vitcompact[plot]'")
    return found


def _teacher(options: Options, space: Workspace | None, console: Console) -> LoadedModel:
    """`--teacher`, or the original of the workspace that MODEL came from, or the one in MODEL's own record."""
    if options.teacher is not None:
        teacher = inputs.open_other(options.teacher, str(options.source))
        origin, _ = inputs.lineage(str(options.source))
        if origin is not None and (other := origin.differs(teacher.provenance)):
            console.warning(f"the teacher has other {other} than the model that {options.source} was made from")
        return teacher
    if space is not None:
        return inputs.recorded_original(space, console, "--teacher")
    return inputs.original_of(str(options.source), console, "--teacher")


def _state_dir(out: Path, space: Workspace | None) -> Path:
    return out.with_name(f"{out.name}-state") if space is None else space.finetune_state


def _asked(options: Options) -> dict[str, Any]:
    """What the run was asked for, as `_continued` finds it again."""
    chosen = {name: value for name, value in inputs.effective(options).items() if name not in _OF_THE_COMMAND}
    found: dict[str, Any] = common.plain({"options": chosen, "overwrite": options.overwrite})
    return found


def _continued(options: Options, given: frozenset[str], console: Console) -> tuple[Options, frozenset[str]]:
    """The options of the run that `--resume` continues, where they were not given again; and which are given now."""
    if options.resume is None:
        return options, given
    if options.resume != "auto":
        found = user_path(options.resume)
        folder = found if found.is_dir() else found.parent
    elif None not in (options.source, options.out):
        folder = _state_dir(user_path(options.out), None)
    else:
        folder = Workspace(options.workdir).finetune_state
    try:
        kept = read_json(folder / OPTIONS_NAME)
        recorded, overwrite = dict(kept["options"]), bool(kept["overwrite"])
    except (OSError, ValueError, TypeError, KeyError):  # of an earlier release, or there is nothing to continue
        return options, given
    filled = inputs.revived(options, recorded, given)
    if filled:
        console.note(f"from the run that is continued:{inputs.listed(filled)}")
    changes = {**filled, "overwrite": options.overwrite or overwrite}
    return dataclasses.replace(options, **changes), given | frozenset(recorded)
