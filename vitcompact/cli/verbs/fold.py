"""`vitcompact fold`."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack

from torch import Tensor, nn

from vitcompact.attached import results as attached
from vitcompact.checkpoint import load_source
from vitcompact.checkpoint.stored import weight_bytes
from vitcompact.cli import images, inputs
from vitcompact.cli.command import Options
from vitcompact.cli.console import Console
from vitcompact.cli.render.results import fold_table
from vitcompact.cli.report import command_of
from vitcompact.cli.verbs import common
from vitcompact.data import CalibrationImages
from vitcompact.folding import fold
from vitcompact.operators.merge import merge_schedule

COMPARED = 128
"""Images that models with and without token merging are compared on."""


def run(options: Options, given: frozenset[str], console: Console) -> None:
    """Fold MODEL, prove that nothing changed, and save the result in OUT."""
    with ExitStack() as held:
        _run(options, given, console, held)


def _run(options: Options, given: frozenset[str], console: Console, held: ExitStack) -> None:
    space = common.workspace_for(options, held)
    out = common.out_for(options, space, "fold", held)
    taken = options.source is None
    options = common.model_from_workspace(options, space, "fold", console)
    if taken and space is not None and "finetune" not in space.state.stages:
        console.note(f"it was not finetuned: '{space.command('finetune')}' before fold recovers accuracy")
    common.check_kept(out, options, space)
    loaded = load_source(str(options.source))
    merging = _merges(loaded.model, options)
    options = images.with_recorded_images(options, given, space, console) if merging else options
    dtype = common.saved_dtype(options, loaded)
    folded = fold(
        loaded.model,
        dtype=dtype,
        merge_tokens=options.merge_tokens,
        images=_images(loaded.model, options, console) if merging else None,
        seed=options.seed,
    )
    results = {**common.plain({"parity": attached(folded).parity})["parity"]}
    results |= common.plain({"cost": common.cost_of(folded)})["cost"]
    if merging:
        results |= common.plain({"merging": attached(folded).merging})
    provenance, original = inputs.lineage(str(options.source))
    results["bytes"] = weight_bytes(folded, dtype)
    card = common.measured_before(str(options.source))
    costs = {name: results[name] for name in ("params", "macs", "bytes")}
    scores = {} if merging and options.merge_tokens is not None else card["after"]  # folding itself changes nothing
    common.save_model(
        *(folded, out, options, results, provenance or loaded.provenance, original, dtype),
        measured={**card, "after": {**scores, **costs}},
        command=command_of("fold", options, given),
    )
    if space is not None:
        with common.complete(out):
            space.record(stage=("fold", out))
    document = {**results, "out": str(out), "options": inputs.effective(options)}
    console.result(document, fold_table(document))
    following = common.follow(options, "eval", "bench", space=space)
    console.note(f"written to {out}; next: {following}")


def _merges(model: nn.Module, options: Options) -> bool:
    """Whether the folded model will merge tokens: as asked for, or as MODEL does.

    Raises:
        UsageError: tokens of this model cannot be merged so.
    """
    if options.merge_tokens is not None:
        return bool(merge_schedule(model, options.merge_tokens))
    plan = getattr(model, "vitcompact_plan", None)
    return bool(plan is not None and plan.merge_tokens)


def _images(model: nn.Module, options: Options, console: Console) -> Tensor | None:
    """Images on which token merging is judged, or None where none are known."""
    if not images.has_images(options) and options.eval_data_dir is None:
        console.warning("no images: what token merging does to the outputs is measured on noise; give --data-dir")
        return None
    data = images.evaluation_set(options)
    split = options.train_split if data is None else options.val_split
    chosen = dataclasses.replace(
        data or images.training_set(options), num_samples=COMPARED, batch_size=COMPARED, seed=options.seed
    )
    return next(iter(CalibrationImages(model, chosen, split=split, progress=console.progress)))
