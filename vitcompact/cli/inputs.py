"""From parsed options to what the library takes: sources, images, and what the workspace fills in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from vitcompact.checkpoint import LoadedModel, Provenance, SourceOptions, load_source, read_record
from vitcompact.cli.command import Options
from vitcompact.cli.console import Console
from vitcompact.cli.exported import load_model, origin_of
from vitcompact.cli.spoken import flagged, flags
from vitcompact.cli.workspace import Source, Workspace
from vitcompact.errors import UsageError
from vitcompact.exporting import is_exported
from vitcompact.operators.merge import given_schedule
from vitcompact.options.declare import Option, check_type, declared
from vitcompact.options.selection import SelectionOptions
from vitcompact.options.shared import Latency
from vitcompact.planning.allocation import check_allocation
from vitcompact.planning.request import Budget, budget_of, check_budget, check_keep
from vitcompact.planning.scope import check_patterns
from vitcompact.planning.selection import Selection, patterns
from vitcompact.utils.reading import shortened, user_path

if TYPE_CHECKING:
    from torch import nn

SOURCE_NAMES = tuple(declared(SourceOptions))
RATIO_NAMES = ("ratio", "rank_ratio")
PAIR_NAMES = ("allocation", "terms", "filter_rank", "init", "hallucinate")
"""Options that only the pair has."""
DEFAULT_TARGET = 0.8
"""Share of the MACs that is left where nothing was chosen."""
TARGET_NAMES = ("target_macs", "target_params", "target_latency", "ops")
LATENCY_NAMES = tuple(declared(Latency))
SELECTION_NAMES = tuple(declared(SelectionOptions))
ORIGINAL = "original"
"""Key in the recorded options of a checkpoint: how the model that it was made from is read."""
UNRECORDED = ("config", "json", "quiet", "verbose", "overwrite", "dry_run", "resume", "dist_timeout")

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Original:
    """A loaded source and what the workspace keeps of it."""

    loaded: LoadedModel
    record: Source

    @property
    def model(self) -> nn.Module:
        return self.loaded.model

    @property
    def provenance(self) -> Provenance:
        return self.loaded.provenance


def given_source(options: T) -> T:
    """`--checkpoint FILE`, or `--model NAME` by itself, taken as the SOURCE that they are.

    Raises:
        UsageError: the source was given twice.
    """
    source, checkpoint, model = options.source, options.checkpoint, options.model  # type: ignore[attr-defined]
    if source is not None and checkpoint is not None:
        raise UsageError(f"the model was given twice: {source!r} and --checkpoint {checkpoint!r}")
    if checkpoint is not None:
        return dataclasses.replace(options, source=checkpoint, checkpoint=None)  # type: ignore[type-var]
    if source is None and model is not None:
        return dataclasses.replace(options, source=model, model=None)  # type: ignore[type-var]
    return options


def open_original(options: Any, given: frozenset[str], space: Workspace | None, console: Console) -> Original:
    """The original model: the SOURCE given, or else the one that the workspace recorded.

    Raises:
        UsageError: neither, or the recorded weights have changed.
    """
    own = {name: getattr(options, name) for name in SOURCE_NAMES if getattr(options, name) is not None}
    if options.source is not None or space is None:
        loaded = load_model(options.source or "", SourceOptions(**own))
        origin = loaded.provenance
        return Original(loaded, Source(absolute_source(origin), origin.sha256, own, origin.settings))
    recorded = space.source()
    asked = {name: value for name, value in own.items() if name in given}
    source_options = {**recorded.options, **asked}
    console.note(f"from the workspace {space.path}: SOURCE {recorded.source}{listed(recorded.options)}")
    loaded = _load_recorded(recorded.source, source_options, space.path)
    if source_options == recorded.options:
        space.check_source(loaded.provenance)
    else:  # another size or number of classes was asked for: only the weights have to be the same
        space.check_source(dataclasses.replace(loaded.provenance, settings=None))
    settings = loaded.provenance.settings
    return Original(loaded, dataclasses.replace(recorded, options=source_options, settings=settings))


def open_to_convert(options: Any, given: frozenset[str], space: Workspace | None, console: Console) -> Original:
    """The original model as `open_original` has it, once what was said of its layers fits it: before any image is read.

    Raises:
        UsageError: as `open_original`; patterns that match no layer, or tokens that cannot be merged so.
    """
    original = open_original(options, given, space, console)
    check_patterns(original.model, patterns(options.protect))
    given_schedule(original.model, options.merge_tokens)
    return original


def _load_recorded(source: str, options: Mapping[str, Any], where: Path) -> LoadedModel:
    """`load_source` with options out of a file that others may have changed."""
    try:
        return load_source(source, SourceOptions(**options))
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UsageError(
            f"what {where} records of the original cannot be used ({error}): delete it, or name the model"
        ) from error


def recorded_original(space: Workspace, console: Console, what: str) -> LoadedModel:
    """The original that the workspace recorded, unchanged, as the `what` of a command."""
    recorded = space.source()
    console.note(f"from the workspace {space.path}: {what} {recorded.source}")
    loaded = _load_recorded(recorded.source, recorded.options, space.path)
    space.check_source(loaded.provenance)
    return loaded


def original_of(directory: str, console: Console, what: str, img_size: int | None = None) -> LoadedModel:
    """The original that a checkpoint of ours was made from, by its own record, at `img_size` where one was given.

    Raises:
        UsageError: it has no record of one, or that cannot be found, or has changed.
    """
    path = directory.removeprefix("local-dir:")
    ask = f"name it with {what} SOURCE"
    origin, original = lineage(directory)
    if origin is None:
        raise UsageError(f"{directory} does not say what it was made from: {ask}")
    known = {name: value for name, value in original.items() if name in SOURCE_NAMES}
    source = origin.source
    console.note(f"recorded in {path}: {what} {source}")
    try:
        loaded = load_source(source, SourceOptions(**(known if img_size is None else {**known, "img_size": img_size})))
    except UsageError as error:
        raise UsageError(f"{path} was made from {source}, which cannot be read ({error}): {ask}") from error
    if img_size is not None:  # another size was asked for: only the weights have to be the same
        origin = dataclasses.replace(origin, settings=None)
    if changed := origin.differs(loaded.provenance):
        raise UsageError(f"{path} was made from a model with other {changed} than {source} has now: {ask}")
    return loaded


def lineage(directory: str) -> tuple[Provenance | None, dict[str, Any]]:
    """Where a checkpoint of ours or an exported file was made from, and how that is read; nothing for any other."""
    if is_exported(directory):
        origin, told = origin_of(directory)
        return origin, dict(told)
    try:
        record = read_record(directory.removeprefix("local-dir:"))
    except UsageError:
        return None, {}
    original = record.options.get(ORIGINAL)
    return record.provenance, dict(original) if isinstance(original, Mapping) else {}


def open_other(source: str, model: str, img_size: int | None = None) -> LoadedModel:
    """A second model, to be compared with `model`: at the same size, and a bare weights file by the same architecture.

    Args:
        source: the SOURCE given for it.
        model: the checkpoint that it is compared with; what is recorded there of its original is a hint.
        img_size: side in pixels, where one was given.
    """
    _, original = lineage(model)
    size = img_size if img_size is not None else original.get("img_size")
    if is_exported(source):
        return load_model(source, SourceOptions())
    bare = user_path(source).is_file()
    known = {name: original[name] for name in ("model", "model_kwargs") if bare and name in original}
    return load_model(source, SourceOptions(**known, img_size=size))


def absolute_source(provenance: Provenance) -> str:
    """A SOURCE that means the same from any folder."""
    prefix, path = "", provenance.source
    if provenance.kind == "local-dir" and path.lower().startswith("local-dir:"):
        prefix, path = path[: len("local-dir:")], path[len("local-dir:") :]
    if provenance.kind in ("local-dir", "file"):
        return prefix + str(user_path(path.strip()).resolve())
    return path


def from_workspace(
    options: T,
    given: frozenset[str],
    recorded: Mapping[str, Any],
    names: tuple[str, ...],
    space: Workspace,
    console: Console,
) -> T:
    """Values for what was not given; what was taken is said."""
    taken = {name: value for name, value in revived(options, recorded, given).items() if name in names}
    if taken:
        console.note(f"from the workspace {space.path}:{listed(taken)}")
    return dataclasses.replace(options, **taken) if taken else options  # type: ignore[type-var]


def with_default(options: T, given: frozenset[str], console: Console) -> T:
    """Shares where none were given: those of `--method`, or a budget where there are images.

    Options that belong to the pair, and `--only`, choose the pair. What is taken by default is said.

    Raises:
        UsageError: `--method pair` beside a target, or `--method budget` beside a ratio.
    """
    shares = {name: getattr(options, name) for name in (*RATIO_NAMES, *TARGET_NAMES[:3])}
    method = options.method  # type: ignore[attr-defined]
    if method == "pair":
        if target := next((name for name in TARGET_NAMES[:3] if shares[name] is not None), None):
            raise UsageError(f"--method pair is --ratio 0.5 --rank-ratio 0.5: leave out {flags()[target]}")
        halves = {name: 0.5 for name in RATIO_NAMES if shares[name] is None}
        return dataclasses.replace(options, **halves)  # type: ignore[type-var]
    if method == "budget" and (ratio := next((name for name in RATIO_NAMES if shares[name] is not None), None)):
        raise UsageError(f"--method budget is a target, such as --target-macs 0.8: leave out {flags()[ratio]}")
    chosen = any(share is not None for share in shares.values()) or getattr(options, "plan", None) is not None
    pair = given & {*PAIR_NAMES} or options.only is not None  # type: ignore[attr-defined]
    has_images = options.data_dir is not None or bool(options.dataset)  # type: ignore[attr-defined]
    if chosen or (method is None and (pair or not has_images)):
        return options
    if method is None:
        console.note(f"no share was given: --target-macs {DEFAULT_TARGET:g} (--method pair is the paper's pair)")
    return dataclasses.replace(options, target_macs=DEFAULT_TARGET)  # type: ignore[type-var]


def targets_of(options: Any) -> tuple[str, tuple[float, ...]] | None:
    """The target for which several shares were given, and those; None where there is none."""
    values = {name: getattr(options, name) for name in TARGET_NAMES[:3]}
    return next(((name, value) for name, value in values.items() if isinstance(value, tuple)), None)


def recorded_selection(recorded: Mapping[str, Any], given: frozenset[str], method: str | None) -> dict[str, Any]:
    """What was recorded of a selection, less what the options given replace: ratios and targets exclude each other."""
    targets = given & {*TARGET_NAMES} or method == "budget"
    ratios = given & {*RATIO_NAMES} or method == "pair"
    dropped = (*TARGET_NAMES, *RATIO_NAMES, "allocation") if targets else TARGET_NAMES if ratios else ()
    if ratios or (targets and "target_latency" not in given):
        dropped = (*dropped, *LATENCY_NAMES)
    if ratios and recorded.get("merge_tokens") == "auto":
        dropped = (*dropped, "merge_tokens")
    return {name: value for name, value in recorded.items() if name not in dropped}


def selection_arguments(options: Any) -> dict[str, Any]:
    """What `analyze` and `convert` of the library take, from the options of the same names."""
    return {name: getattr(options, name) for name in SELECTION_NAMES}


def budget_from(chosen: Mapping[str, Any]) -> Budget | None:
    """The budget in what `selection_arguments` gives, or None.

    Raises:
        UsageError: targets that exclude each other, or out of range.
    """
    return budget_of(*(chosen[name] for name in (*TARGET_NAMES, "merge_tokens", "keep", *LATENCY_NAMES)))


def check_selection(options: Any, plan: object = None) -> None:
    """Refuse a selection that cannot be, before anything is loaded.

    Raises:
        UsageError: see `Selection` and `Budget`.
    """
    chosen = selection_arguments(options)
    budget = budget_from(chosen)
    images = options.data_dir or options.dataset or None
    check_budget(budget, (options.ratio, options.rank_ratio), plan, images)
    check_keep(options.keep, images)
    shares = {name: getattr(options, name) for name in RATIO_NAMES if getattr(options, name) is not None}
    names = ("only", "protect", "size_multiple")
    selection = Selection(**shares, **{name: chosen[name] for name in names})
    check_allocation(options.allocation, selection, budget, plan, images)


def effective(options: Any) -> dict[str, Any]:
    """The options of a run as they are recorded, and as `--config` reads them."""
    known, recorded = declared(type(options)), {}
    for field in dataclasses.fields(options):
        value, option = getattr(options, field.name), known.get(field.name, Option(""))
        if field.name in UNRECORDED or value in (None, "") or value == () == field.default:
            continue
        written = (",".join(value) or "none") if option.items is str else value
        recorded[option.recorded or field.name] = written
    return recorded


def revived(options: Options, recorded: Mapping[str, Any], given: frozenset[str]) -> dict[str, Any]:
    """Recorded values, in the form of those parsed, of what was not given and is otherwise.

    Of names that are no options nothing is known, nor needed.
    """
    known = declared(type(options))
    hints = get_type_hints(type(options))
    values = {name: _read(known[name], name, value, hints[name]) for name, value in recorded.items() if name in known}
    return {n: value for n, value in values.items() if n not in given and value != getattr(options, n)}


def _read(option: Option, name: str, value: Any, hint: Any) -> Any:
    """A recorded value as one that was given; the file may have been changed by others."""
    try:
        read = option.read(name, value)
        check_type(name, hint, read)
        if refusal := option.refusal(read):
            raise UsageError(f"`{name}` must be {refusal}, got {shortened(read)}")
        return read
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        raise UsageError(f"the recorded value {shortened(value)} of `{name}` cannot be used: give it again") from error


def listed(values: Mapping[str, Any]) -> str:
    """Values as they would be typed, each with a space before it."""
    return "".join(f" {word}" for name, value in values.items() for word in flagged(name, value))
