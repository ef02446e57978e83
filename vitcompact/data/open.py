"""Opens a data set by timm's rules, and says what was looked for when there is nothing to open."""

from __future__ import annotations

import contextlib
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

from timm.data import create_dataset

from vitcompact.data.image_set import DecodedSet, ImageSet, ReaderSet, StreamSet
from vitcompact.data.kinds import ARRAYS, image_suffixes, left_out, timm_looks_for
from vitcompact.data.walk import check_folder, check_tar
from vitcompact.errors import DataError
from vitcompact.options.data import DataOptions
from vitcompact.utils.reading import name_errors, read_text, user_path

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "eval", "evaluation")
MAP_STYLE = ("", "torch", "hfds")
CLASS_MAP_BYTES = 1 << 24


def open_dataset(options: DataOptions, split: str) -> ImageSet | StreamSet:
    """The images of one split: map-style for folders, tars, `torch/` and `hfds/`, a stream for `wds/` and its kin.

    A folder or tar whose images lie in no class folder, or all in one, has no labels unless a class map is given.

    Raises:
        DataError: it does not exist, cannot be opened or holds no images.
    """
    prefix = options.dataset.partition("/")[0].lower() if options.dataset else ""
    if prefix in ("", "torch") and options.data_dir is None:
        raise DataError("no images given: pass `data_dir` with a folder of images or a .tar of class folders")
    if not prefix:
        return _open_files(options, split)
    _check_class_map(options, user_path(str(options.data_dir or ".")))
    if prefix not in MAP_STYLE:
        return _open_stream(options, split)
    dataset = _create(options, split)
    description = f"{options.dataset} ({split})"
    if prefix == "torch":
        names = tuple(str(name) for name in getattr(dataset, "classes", ()))
        return _not_empty(DecodedSet(dataset, description, names))
    _check_image_column(dataset.reader, description)
    labelled = _has_label_column(dataset.reader)
    if options.target_key is not None and not labelled:
        columns = ", ".join(dataset.reader.dataset.column_names)
        raise DataError(f"{description} has no column {options.target_key!r} (`target_key`); it has: {columns}")
    return _not_empty(ReaderSet(dataset.reader, description, _class_names(dataset.reader), labelled))


def _open_files(options: DataOptions, split: str) -> ImageSet:
    root = user_path(str(options.data_dir))
    if not root.exists():
        raise DataError(f"no such folder or tar: {root}")
    if root.is_dir():
        try:
            _check_split_folder(root, split)
        except OSError as error:
            raise DataError(f"cannot read the folder {root}: {error.strerror}") from error
        check_folder(root)
    elif root.suffix != ".tar":
        raise DataError(f"{root} is a file, but neither a folder nor a .tar (unpacked, with this very ending)")
    elif not root.is_file():
        raise DataError(f"{root} is no regular file")
    else:
        check_tar(root)
    _check_class_map(options, root)
    # timm would leave a pickled index beside a large tar, and trust one that it finds there.
    kwargs: dict[str, Any] = {"cache_tarinfo": False} if root.is_file() else {}
    dataset = _create_files(options, split, root, kwargs)
    reader = dataset.reader
    names = _class_names(reader)
    labelled = bool(options.class_map) or len(names) > 1
    images = ReaderSet(reader, str(reader.root), names if labelled else (), labelled)
    if root.is_dir():
        images.left_out = left_out(Path(reader.root), image_suffixes())
    return _not_empty(images)


def _create_files(options: DataOptions, split: str, root: Path, kwargs: dict[str, Any]) -> Any:
    """timm's data set of the images in a folder or tar, or of the numpy files where there are no images."""
    suffixes = image_suffixes()
    try:
        with timm_looks_for(suffixes):
            dataset = _create(options, split, root=str(root), **kwargs)
    except DataError as error:
        try:
            with timm_looks_for(ARRAYS):
                return _create(options, split, root=str(root), **kwargs)
        except DataError:
            raise _nothing_found(root, options, error) from error
    return dataset


def _create(options: DataOptions, split: str, root: str | None = None, **kwargs: Any) -> Any:
    """`timm.data.create_dataset`, with its assorted exceptions as one; what it prints goes to stderr."""
    root = root if root is not None else str(options.data_dir or "") or None
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return create_dataset(
                options.dataset,
                root=root,
                split=split,
                class_map=options.class_map or None,
                **_columns(options),
                **kwargs,
            )
    except ImportError as error:
        raise DataError(f"dataset '{options.dataset}' needs a package that is missing: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # assertions, RuntimeError, tar errors, errors of the data set's own library
        what = options.dataset or root
        raise DataError(f"cannot open {what} (split '{split}'): {str(error) or type(error).__name__}") from error


def _columns(options: DataOptions) -> dict[str, str]:
    """Which columns hold images and labels, where that was said and there are columns."""
    given = {"input_key": options.input_key, "target_key": options.target_key}
    prefix = options.dataset.partition("/")[0].lower()
    has_columns = prefix not in ("", "torch")
    if prefix == "wds" and options.input_key is not None:  # timm decodes it to `jpg`, and looks for its own name then
        given["input_key"] = f"{options.input_key};jpg"
    return {name: key for name, key in given.items() if key is not None} if has_columns else {}


def _open_stream(options: DataOptions, split: str) -> StreamSet:
    def open_pass(shuffle_seed: int | None) -> Any:
        training = shuffle_seed is not None
        return _create(
            options,
            split,
            is_training=training,
            seed=shuffle_seed if training else options.seed,
            num_samples=options.num_samples if training else None,
        )

    dataset = open_pass(None)
    return StreamSet(open_pass, f"{options.dataset} ({split})", _class_names(dataset.reader), len(dataset))


def _check_image_column(reader: Any, description: str) -> None:
    """timm casts the column of images to images, which makes an empty one of a column that is not there."""
    if not len(reader.dataset):
        return
    first = reader.dataset[0].get(reader.image_key)
    if first is None or not (first.get("bytes") or first.get("path")):
        columns = ", ".join(name for name in reader.dataset.column_names if name != reader.image_key)
        raise DataError(
            f"{description} has no images in a column {reader.image_key!r} (`input_key`); other columns: {columns}"
        )


def _has_label_column(reader: Any) -> bool:
    """Whether a Hugging Face data set has labels; timm's reader, which insists on one, gets another column."""
    if reader.label_key in reader.dataset.column_names:
        return True
    reader.label_key, reader.remap_class = reader.image_key, False
    return False


def _class_names(reader: Any) -> tuple[str, ...]:
    mapping = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}
    return tuple(str(name) for name, _ in sorted(mapping.items(), key=lambda item: item[1]))


def _check_split_folder(root: Path, split: str) -> None:
    """timm takes the whole of `root` when it has no folder for `split`: refuse where that would mix splits."""
    wanted = next((names for names in (TRAIN_NAMES, VAL_NAMES) if split in names), (split,))
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    if any((root / name).is_dir() for name in wanted):
        return
    if split not in TRAIN_NAMES + VAL_NAMES:
        found = f"it has {_some(folders)}" if folders else "it has no folders"
        raise DataError(f"{root} has no folder '{split}' for the split of that name; {found}")
    if folders and set(folders) <= {*TRAIN_NAMES, *VAL_NAMES, "test"}:
        raise DataError(
            f"{root} has none of the folders {', '.join(wanted)} for the split '{split}'; it has {_some(folders)}: "
            "name one with `train_split` or `val_split`, or pass the folder itself"
        )


def _check_class_map(options: DataOptions, root: Path) -> None:
    if not options.class_map:
        return
    path = Path(options.class_map)
    with name_errors(path):
        missing = not path.is_file() and not (root / path).is_file()
    if missing:
        raise DataError(f"no such class map: {path} (nor inside {root})")
    if path.suffix.lower() != ".txt":
        raise DataError(
            f"a class map is a .txt file with one class name a line, in the order of the model's outputs, got {path}"
            + (": pickled ones are not opened" if path.suffix.lower() == ".pkl" else "")
        )
    try:
        read_text(path if path.exists() else root / path, CLASS_MAP_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(f"the class map {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _nothing_found(root: Path, options: DataOptions, error: DataError) -> DataError:
    """A message for a folder or tar that timm could not make a data set of."""
    accepted = ", ".join(image_suffixes())
    if root.is_file():
        if _tar_has_images(root) and not options.class_map:
            return error
        hint = f" whose folder is named in {options.class_map}" if options.class_map else ""
        return DataError(f"no images in {root}: looked for {accepted}{hint}")
    files = [name for _, _, names in os.walk(root, followlinks=True) for name in names]
    images = [name for name in files if Path(name).suffix.lower() in image_suffixes()]
    if images and options.class_map:
        return DataError(f"{len(images)} images in {root}, but no folder is named in the class map {options.class_map}")
    if images:
        return error
    if not files:
        return DataError(f"{root} is empty: looked for images ({accepted}) in it and in its folders")
    tars = ": pass one of its .tar files instead" if any(name.endswith(".tar") for name in files) else ""
    return DataError(f"no images in {root}: looked for {accepted}, found {_some(sorted(files))}{tars}")


def _tar_has_images(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:") as archive:
            return any(Path(name).suffix.lower() in image_suffixes() for name in archive.getnames())
    except Exception:  # headers may hold anything
        return True


def _not_empty(dataset: ImageSet) -> ImageSet:
    if len(dataset) == 0:
        raise DataError(f"no images in {dataset.description}")
    return dataset


def _some(names: list[str], limit: int = 5) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
