"""From parsed options to the images that a verb reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from vitcompact.cli.command import of_kind
from vitcompact.cli.console import Console
from vitcompact.cli.inputs import from_workspace
from vitcompact.cli.workspace import Workspace
from vitcompact.data import CalibrationImages, DataOptions, fingerprint, overlap
from vitcompact.data.open import TRAIN_NAMES, VAL_NAMES, open_dataset
from vitcompact.errors import DataError
from vitcompact.utils.processes import ALONE, Processes
from vitcompact.utils.reading import user_path

SET_NAMES = ("data_dir", "dataset", "train_split", "val_split", "class_map", "input_key", "target_key")
PREPARATION_NAMES = ("mean", "std", "crop_pct", "crop_mode", "interpolation")
DATA_NAMES = (*SET_NAMES, "eval_data_dir", *PREPARATION_NAMES)

_COMPARED = 4_000
"""Images of either set that are compared to find an overlap: enough to notice one, few enough to read at once."""

T = TypeVar("T")


def with_recorded_images(options: T, given: frozenset[str], space: Workspace | None, console: Console) -> T:
    """The images that the workspace recorded, where none were given."""
    if space is None:
        return options
    own = given & {"data_dir", "dataset"}
    names = (*PREPARATION_NAMES, "eval_data_dir") if own else DATA_NAMES
    filled = from_workspace(options, given, space.state.data, names, space, console)
    if space.state.images is not None and not given & {*SET_NAMES} and has_images(filled):
        space.check_images(fingerprint(training_set(filled)))
    return filled


def recorded_images(options: Any) -> dict[str, Any]:
    """What the workspace keeps of the images: paths that mean the same from any folder."""
    values = {name: getattr(options, name) for name in DATA_NAMES if getattr(options, name) not in (None, "")}
    for name in ("data_dir", "eval_data_dir", "class_map"):
        if name in values and (path := user_path(values[name])).exists():
            values[name] = str(path.resolve())
    return values


def fingerprint_of(options: Any) -> str | None:
    """The fingerprint of the images to calibrate or train on, None where none were named."""
    return fingerprint(training_set(options)) if has_images(options) else None


def has_images(options: Any) -> bool:
    """Whether a data set was named."""
    return options.data_dir is not None or bool(options.dataset)


def training_set(options: Any, **changes: Any) -> DataOptions:
    """The data set to calibrate or train on."""
    return of_kind(DataOptions, options, **changes)


def evaluation_set(options: Any) -> DataOptions | None:
    """The data set to evaluate on: `--eval-data-dir`, or a split of its own in `--data-dir`; None where there is none.

    The images to train on are never taken for it.
    """
    if options.eval_data_dir is not None:
        return training_set(options, data_dir=options.eval_data_dir, dataset="", num_samples=None)
    if options.dataset and options.val_split != options.train_split:
        return training_set(options, num_samples=None)
    root = user_path(options.data_dir) if options.data_dir is not None else None
    if root is not None and _has_split(root, options.train_split, TRAIN_NAMES):
        return training_set(options, num_samples=None) if _has_split(root, options.val_split, VAL_NAMES) else None
    return None


def probe_set(options: Any) -> DataOptions:
    """The labelled images to fit a probe to: `--probe-data-dir`, or the training images beside those to evaluate on.

    Raises:
        DataError: neither.
    """
    wanted = {"num_samples": options.probe_num_samples}
    if options.probe_data_dir is not None:
        return training_set(options, data_dir=options.probe_data_dir, dataset="", **wanted)
    root = None if options.data_dir is None or options.dataset else user_path(options.data_dir)
    apart = options.dataset and options.val_split != options.train_split
    if apart or (root is not None and (options.eval_data_dir or _has_split(root, options.train_split, TRAIN_NAMES))):
        return training_set(options, **wanted)
    raise DataError(
        "--probe is fitted to labelled images, others than those that judge it: give --probe-data-dir, or a --data-dir "
        "with a training split"
    )


def optional_evaluation_set(options: Any, console: Console) -> DataOptions | None:
    """The same for verbs that can do without it: a split that a data set does not have is said, and none is taken."""
    data = evaluation_set(options)
    if data is None or options.eval_data_dir is not None or not options.dataset:
        return data
    try:
        open_dataset(data, data.val_split)
    except DataError as error:
        console.warning(f"nothing to evaluate on: {error}")
        return None
    return data


def calibration_images(
    model: nn.Module, options: Any, console: Console, processes: Processes = ALONE
) -> CalibrationImages | None:
    """The calibration images, or None where no data set was named; the library warns of unreadable ones."""
    if not has_images(options):
        return None
    images = CalibrationImages(model, training_set(options), progress=console.progress, processes=processes)
    if not processes.first:
        return images
    console.note(f"calibrating on {images.num_samples} images of {images.description}")
    warn_overlap(training_set(options), optional_evaluation_set(options, console), console)
    return images


def warn_overlap(training: DataOptions, evaluation: DataOptions | None, console: Console) -> None:
    """Say when images to evaluate on are among those calibrated or trained on."""
    if evaluation is None:
        return
    shared = overlap(training, evaluation, limit=_COMPARED)
    if shared:
        console.warning(
            f"at least {shared} of the images to evaluate on are among those calibrated or trained on: "
            "results will look better than they are"
        )


def calibrated_on(space: Workspace) -> DataOptions | None:
    """The data set that the workspace recorded to calibrate or train on, where it can still be opened."""
    recorded = {name: space.state.data[name] for name in SET_NAMES if name in space.state.data}
    data = DataOptions(**recorded) if recorded.get("data_dir") or recorded.get("dataset") else None
    root = None if data is None or data.data_dir is None else Path(data.data_dir)
    return None if root is not None and not root.exists() else data


def require_images(options: Any, what: str) -> None:
    """Raises DataError where no data set was named."""
    if not has_images(options):
        raise DataError(f"no images given: {what} needs --data-dir with a folder of images or a .tar of class folders")


def _has_split(root: Path, split: str, known: tuple[str, ...]) -> bool:
    names = known if split in known else (split,)
    return root.is_dir() and any((root / name).is_dir() for name in names)
