"""What several verbs do alike: workspaces, recording, counting, saving."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitcompact.attached import results as attached
from vitcompact.checkpoint import LoadedModel, Provenance, check_out, read_record, save
from vitcompact.checkpoint.card_sections import COMMAND, MEASURED, measured_in
from vitcompact.checkpoint.provenance import DIR_PREFIX
from vitcompact.checkpoint.stored import weight_bytes
from vitcompact.cli import images, inputs
from vitcompact.cli.console import Console
from vitcompact.cli.report.conversion import measured_in_conversion
from vitcompact.cli.spoken import flagged
from vitcompact.cli.workspace import Workspace, command
from vitcompact.data import resolve_input
from vitcompact.errors import UsageError
from vitcompact.exporting import ExportedModel
from vitcompact.models.cost import Cost, count
from vitcompact.plans.schema import Plan
from vitcompact.utils.files import NOTHING_WRITTEN, claimed
from vitcompact.utils.plain import to_plain
from vitcompact.utils.processes import ALONE, Processes
from vitcompact.utils.reading import user_path


def processes_of(console: Console) -> Processes:
    """The processes that carry out this command; one alone unless torchrun started several."""
    found: Processes = console.processes or ALONE
    return found


def workspace_for(options: Any, held: ExitStack, processes: Processes = ALONE) -> Workspace | None:
    """The workspace of a verb, or None where both model and output were given: it is neither read nor written.

    It is held until the end of `held`: no other verb writes into it meanwhile. Of several processes the first holds it,
    the others read what it had before.

    Raises:
        UsageError: another verb is at work in it.
    """
    if options.source is not None and options.out is not None:
        return None
    space = Workspace(options.workdir)
    return held.enter_context(space.held()) if processes.first else space


def out_for(options: Any, space: Workspace | None, verb: str, held: ExitStack, processes: Processes = ALONE) -> Path:
    """The directory to write, refused early where it exists, and held until the end of `held`.

    Of several processes the first writes it, and it alone looks at it.

    Raises:
        UsageError: it exists and --overwrite was not given, or what is in it must not be overwritten.
    """
    out = options.out if options.out is not None else _not_none(space).out(verb)
    if not processes.first:
        return user_path(out)
    checked = check_out(out, overwrite=options.overwrite, keep=_to_keep(options, space))
    held.enter_context(claimed(checked))
    return checked


def check_kept(out: Path, options: Any, space: Workspace | None) -> None:
    """Refuse once more, when model and images are known that were not named on the command line.

    Raises:
        UsageError: OUT is or holds one of them.
    """
    check_out(out, overwrite=options.overwrite, keep=_to_keep(options, space))


def _to_keep(options: Any, space: Workspace | None) -> dict[str, str | Path | None]:
    """What no output may replace, by what it is in messages."""
    named = ("source", "teacher", "plan", "data_dir", "eval_data_dir", "class_map", "config")
    keep: dict[str, str | Path | None] = {_WHAT[name]: _path(getattr(options, name, None)) for name in named}
    if space is not None:
        keep["the workspace"] = space.path
        if space.state.source is not None:
            keep["the original"] = _path(space.state.source.source)
    if options.source is not None:
        origin, _ = inputs.lineage(str(options.source))
        keep["the original"] = keep.get("the original") or (None if origin is None else origin.local_path)
    return keep


_WHAT = {
    "source": "the model",
    "teacher": "the teacher",
    "plan": "the plan",
    "data_dir": "the images",
    "eval_data_dir": "the evaluation images",
    "class_map": "the class map",
    "config": "the configuration",
}


def _path(named: object) -> Path | None:
    """What a SOURCE or a path names on this machine; a name of timm or of the hub is no path."""
    text = str(named or "").strip().removeprefix(DIR_PREFIX)
    try:
        path = user_path(text)
    except UsageError:
        return None
    return path if text and path.exists() else None


def record(
    space: Workspace,
    original: inputs.Original,
    options: Any,
    *,
    selection: Mapping[str, Any] | None = None,
    stage: tuple[str, Path] | None = None,
) -> None:
    """Keep the source and the images for the verbs that follow, and what this one chose or made."""
    space.record(
        source=original.record,
        data=images.recorded_images(options),
        images=images.fingerprint_of(options),
        selection=selection,
        stage=stage,
    )


def cost_of(model: nn.Module) -> Cost:
    """Parameters and MACs an image of the folded form, at the model's own size."""
    if isinstance(model, ExportedModel):
        return Cost(model.description.params, model.description.macs)
    return count(model, resolve_input(model).input_size)


def before_after(before: Cost, after: Cost) -> dict[str, dict[str, int]]:
    """`params` and `macs` of two models, as results have them."""
    return {name: {"before": getattr(before, name), "after": getattr(after, name)} for name in ("params", "macs")}


def save_model(
    model: nn.Module,
    out: Path,
    options: Any,
    results: Mapping[str, Any],
    provenance: Provenance | None,
    original: Mapping[str, Any],
    dtype: torch.dtype,
    measured: Mapping[str, Any],
    command: str,
    beside: Mapping[str, bytes | Path] | None = None,
) -> None:
    """Write a model with the options and results of this run, and with how its original is read.

    Args:
        measured: both models for the card, as `reporting.measures` has them.
        command: what was typed, for the card.
        beside: more files in `out`.
    """
    recorded = {**inputs.effective(options), inputs.ORIGINAL: dict(original)}
    results = {**results, MEASURED: measured, COMMAND: command}
    save(
        model,
        out,
        provenance=provenance,
        options=recorded,
        results=results,
        dtype=dtype,
        overwrite=options.overwrite,
        beside=beside,
    )


@contextmanager
def complete(out: Path) -> Iterator[None]:
    """What comes after the model in `out` was written: an error of the disk then says that it is there."""
    try:
        yield
    except UsageError as error:
        reason = str(error).removesuffix(NOTHING_WRITTEN)
        raise type(error)(f"{reason}; the model itself is complete in {out}") from error


def write_converted(
    model: nn.Module, options: Any, original: inputs.Original, out: Path, command: str
) -> dict[str, Any]:
    """Write a converted model, and say what it has become; `command` is what was typed."""
    results = before_after(cost_of(original.model), cost_of(model))
    found = attached(model)
    if found.fidelity is not None:
        results["fidelity"] = plain(found.fidelity.to_json())
    results |= budget_of(found.plan)
    dtype = saved_dtype(options, original.loaded)
    sizes = weight_bytes(original.model, original.loaded.dtype), weight_bytes(model, dtype)
    results["bytes"] = dict(zip(("before", "after"), sizes, strict=True))
    save_model(
        *(model, out, options, results, original.provenance, original.record.options, dtype),
        measured=measured_in_conversion(results),
        command=command,
    )
    return {**results, "plan": found.plan.to_json(), "out": str(out), "options": inputs.effective(options)}


def record_converted(
    space: Workspace | None, original: inputs.Original, options: Any, document: dict[str, Any], out: Path
) -> None:
    """Keep in the workspace what one model was made from and where it is."""
    if space is not None:
        with complete(out):
            space.write_document(space.plan_file, document["plan"])
            record(space, original, options, stage=("convert", out))


def budget_of(plan: Plan) -> dict[str, Any]:
    """What was asked of a budget and what its plan leaves; nothing where there was none."""
    return {} if plan.reached is None else plain({"budget": plan.reached})


def measured_before(directory: str) -> dict[str, Any]:
    """What the model that a verb continues from recorded of itself and its original; nothing is known of others."""
    try:
        return measured_in(read_record(directory.removeprefix("local-dir:")))
    except UsageError:
        return {"before": {}, "after": {}}


def saved_dtype(options: Any, loaded: LoadedModel) -> torch.dtype:
    """`--dtype`, or the number format of the weights that were read."""
    return loaded.dtype if options.dtype is None else getattr(torch, options.dtype)


def plain(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document as JSON has it."""
    result = to_plain(document)
    assert isinstance(result, dict)
    return result


def amp_dtype(options: Any) -> torch.dtype | None:
    """The number format of `--amp`, or None."""
    return getattr(torch, options.amp_dtype) if options.amp else None


def follow(options: Any, *verbs: str, space: Workspace | None) -> str:
    """The commands that come next, as they have to be typed.

    The workspace tells them everything; where both model and output were given, they name the output and the images.
    """
    if space is not None:
        return ", ".join(command(verb, workdir=options.workdir) for verb in verbs)
    usual = {field.name: field.default for field in dataclasses.fields(options)}
    named = {name: getattr(options, name) for name in images.SET_NAMES if getattr(options, name) != usual[name]}
    data = [word for name, value in named.items() for word in flagged(name, value)] or ["--data-dir", "IMAGES"]
    judged = getattr(options, "eval_data_dir", None)
    needs = {"finetune": data, "eval": data if judged is None else flagged("data_dir", judged)}
    return ", ".join(command(verb, str(options.out), *needs.get(verb, [])) for verb in verbs)


def model_from_workspace(options: Any, space: Workspace | None, verb: str, console: Console) -> Any:
    """The options with MODEL taken from the stage before, where it was not given."""
    if options.source is not None:
        return options
    path = _not_none(space).input_of(verb)
    console.note(f"from the workspace {_not_none(space).path}: MODEL {path}")
    return dataclasses.replace(options, source=str(path))


def _not_none(space: Workspace | None) -> Workspace:
    assert space is not None  # a verb without a workspace was given both ends
    return space
