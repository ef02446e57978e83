"""`vitcompact finetune`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from vitcompact.benchmarking.setup import open_device
from vitcompact.checkpoint import LoadedModel, load_source
from vitcompact.cli import images, inputs
from vitcompact.cli.command import Options, of_kind
from vitcompact.cli.console import Console
from vitcompact.cli.render.results import finetune_table
from vitcompact.cli.verbs import common
from vitcompact.cli.workspace import Workspace
from vitcompact.data import Augment, evaluation_batches, training_loader
from vitcompact.training import TrainOptions, finetune


def run(options: Options, given: frozenset[str], console: Console) -> None:
    """Distil MODEL from its original and save the result in OUT."""
    with ExitStack() as held:
        _run(options, given, console, held)


def _run(options: Options, given: frozenset[str], console: Console, held: ExitStack) -> None:
    space = common.workspace_for(options, held)
    training, augment = of_kind(TrainOptions, options), of_kind(Augment, options)
    open_device(options.device)
    out = common.out_for(options, space, "finetune", held)
    taken = options.source is None
    options = common.model_from_workspace(options, space, "finetune", console)
    options = images.with_recorded_images(options, given, space, console)
    images.require_images(options, "finetune")
    common.check_kept(out, options, space)
    loaded = load_source(str(options.source))
    model = loaded.model
    teacher = _teacher(options, space if taken else None, console)
    batches = training_loader(model, images.training_set(options), augment)
    console.note(f"learning from {batches.num_samples} images of {batches.description}")
    evaluation = images.evaluation_set(options)
    images.warn_overlap(images.training_set(options), evaluation, console)
    if evaluation is None:
        console.note("no evaluation images (--eval-data-dir, or a split of --data-dir): top-1 will not be measured")
    result = finetune(
        model,
        teacher.model,
        batches,
        options=training,
        evaluation=None if evaluation is None else evaluation_batches(model, evaluation),
        device=options.device,
        state_dir=_state_dir(out, space),
        resume=options.resume,
        progress=console.progress,
    )
    measured = common.plain(result.to_json())
    provenance, original = inputs.lineage(str(options.source))
    dtype = common.saved_dtype(options, loaded)
    common.save_model(result.model, out, options, measured, provenance or teacher.provenance, original, dtype)
    if space is not None:
        recorded = images.recorded_images(options)
        space.record(data={**space.state.data, **recorded}, images=images.fingerprint_of(options))
        space.record_stage("finetune", out)
    document = {**measured, "out": str(out), "options": inputs.effective(options)}
    console.result(document, finetune_table(document))
    follow = f"; next: vitcompact fold{common.workdir_flag(options)}" if space is not None else ""
    console.note(f"written to {out}{follow}")


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
