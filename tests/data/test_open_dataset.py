from __future__ import annotations

import gzip
import io
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import vitcompact.data.open as opening
from vitcompact.data import DataOptions, ImageSet, open_dataset
from vitcompact.errors import DataError, UsageError

from .image_files import as_tar, encoded, fill, picture


def opened(path: Path, split: str = "train", **options: Any) -> ImageSet:
    dataset = open_dataset(DataOptions(data_dir=path, **options), split)
    assert isinstance(dataset, ImageSet)
    return dataset


def labels(dataset: ImageSet) -> list[int]:
    return [dataset.load(i)[1] for i in range(len(dataset))]


def test_folder_and_tar_of_classes_are_the_same_data_set(image_folder: Path, tmp_path: Path) -> None:
    folder, tar = opened(image_folder), opened(as_tar(image_folder, tmp_path / "images.tar"))
    assert labels(folder) == labels(tar) == [0] * 6 + [1] * 6 + [2] * 6
    assert folder.class_names == tar.class_names == ("ant", "bee", "cat")
    assert folder.content(7) == tar.content(7)
    assert [folder.name(i) for i in (0, 7)] == ["ant/0.png", "bee/1.png"]


@pytest.mark.parametrize("classes", [("",), ("only",)])
@pytest.mark.parametrize("packed", [False, True])
def test_images_without_classes_have_no_labels(classes: tuple[str, ...], packed: bool, tmp_path: Path) -> None:
    root = fill(tmp_path / "flat", classes, each=3)
    dataset = opened(as_tar(root, tmp_path / "flat.tar") if packed else root)
    assert labels(dataset) == [-1] * 3
    assert dataset.class_names == ()


def test_class_map_decides_the_labels(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text("cat\nant\nbee\n")
    dataset = opened(image_folder, class_map=str(tmp_path / "map.txt"))
    assert labels(dataset) == [1] * 6 + [2] * 6 + [0] * 6
    assert dataset.class_names == ("cat", "ant", "bee")


def test_split_folders_are_found_by_timms_synonyms(tmp_path: Path) -> None:
    fill(tmp_path / "train", each=2)
    fill(tmp_path / "val", each=1)
    assert len(opened(tmp_path, "train")) == 6
    assert len(opened(tmp_path, "validation")) == 3


def test_training_images_are_never_taken_for_a_missing_split(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    with pytest.raises(DataError, match="it has train"):
        opened(tmp_path, "validation")
    with pytest.raises(DataError, match="no folder 'holdout'"):
        opened(tmp_path, "holdout")


def test_no_data_dir() -> None:
    with pytest.raises(DataError, match="pass `data_dir`"):
        open_dataset(DataOptions(), "train")


def test_tar_that_is_none_is_refused(image_folder: Path, tmp_path: Path) -> None:
    good = as_tar(image_folder, tmp_path / "images.tar")
    (tmp_path / "images.tar.gz").write_bytes(gzip.compress(good.read_bytes()))
    (tmp_path / "text.tar").write_text("no archive")
    (tmp_path / "empty.tar").write_bytes(b"")
    for name in ("images.tar.gz", "text.tar", "empty.tar"):
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            opened(tmp_path / name)


def _missing(root: Path) -> Path:
    return root / "nowhere"


def _empty(root: Path) -> Path:
    (root / "empty").mkdir()
    return root / "empty"


def _other_files(root: Path) -> Path:
    (root / "notes").mkdir()
    (root / "notes" / "readme.md").write_text("hello")
    return root / "notes"


def _tar_without_images(root: Path) -> Path:
    return as_tar(_other_files(root), root / "notes.tar")


def _folder_of_tars(root: Path) -> Path:
    (root / "tars").mkdir()
    shutil.copy(as_tar(fill(root / "images"), root / "images.tar"), root / "tars" / "images.tar")
    return root / "tars"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_missing, "no such folder"),
        (_empty, "is empty: looked for images"),
        (_other_files, r"looked for .*\.png.*found readme\.md"),
        (_tar_without_images, r"no images in .*notes\.tar: looked for"),
        (_folder_of_tars, r"pass one of its \.tar files"),
    ],
)
def test_nothing_to_open_says_what_was_looked_for(make: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        opened(make(tmp_path))
    assert caught.value.exit_code == 2


def test_class_map_problems_are_named(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text("dog\n")
    (tmp_path / "map.json").write_text("{}")
    with pytest.raises(DataError, match="no folder is named in the class map"):
        opened(image_folder, class_map=str(tmp_path / "map.txt"))
    with pytest.raises(DataError, match="no such class map"):
        opened(image_folder, class_map="nowhere.txt")
    with pytest.raises(DataError, match=r"map\.json"):
        opened(image_folder, class_map=str(tmp_path / "map.json"))
    for path in (image_folder, None):  # of a data set of columns likewise
        (tmp_path / "map.pkl").write_bytes(pickle.dumps({"dog": 0}))
        options: dict[str, Any] = {} if path else {"dataset": "hfds/some/set"}
        with pytest.raises(DataError, match=r"a \.txt file with one class name a line.*pickled ones are not opened"):
            open_dataset(DataOptions(data_dir=path, class_map=str(tmp_path / "map.pkl"), **options), "train")


def with_holes(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize("make", [with_holes, os.mkfifo, Path.mkdir, lambda path: path.write_bytes(b"\xff\xfe\n" * 9)])
def test_class_maps_that_cannot_be_read(make: Callable[[Path], None], image_folder: Path, tmp_path: Path) -> None:
    make(tmp_path / "map.txt")
    with pytest.raises(DataError, match="class map"):
        opened(image_folder, class_map=str(tmp_path / "map.txt"))


def test_missing_package_is_an_error_and_stdout_stays_clean(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def create(*args: object, **kwargs: Any) -> None:
        print("Please install Hugging Face datasets package")  # noqa: T201
        raise ImportError("No module named 'datasets'")

    monkeypatch.setattr(opening, "create_dataset", create)
    with pytest.raises(DataError, match="needs a package"):
        open_dataset(DataOptions(dataset="hfds/some/set"), "train")
    assert capsys.readouterr().out == ""


class Table:
    """A Hugging Face data set of one row."""

    def __init__(self, **row: object) -> None:
        self.row = row
        self.column_names = list(row)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, object]:
        return self.row


@pytest.mark.parametrize("columns", [["image"], ["image", "label"]])
def test_hub_data_set_with_and_without_labels(columns: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Reader:
        image_key, label_key, remap_class = "image", "label", False
        dataset = Table(**dict(zip(columns, ({"bytes": b"x"}, 7), strict=False)))

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> tuple[io.BytesIO, object]:
            row = dict(zip(columns, ({"bytes": b""}, 7), strict=False))
            return io.BytesIO(encoded(picture(1))), row[self.label_key]

    monkeypatch.setattr(opening, "create_dataset", lambda *_, **__: SimpleNamespace(reader=Reader()))
    dataset = open_dataset(DataOptions(dataset="hfds/some/set"), "train")
    assert isinstance(dataset, ImageSet)
    assert dataset.labelled is ("label" in columns)
    assert labels(dataset) == [7 if dataset.labelled else -1]


def test_columns_are_named_and_a_missing_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def create(*_: object, target_key: str = "label", input_key: str = "image", **kwargs: Any) -> SimpleNamespace:
        seen.update(kwargs, input_key=input_key)
        table = Table(photo={"path": "a.png"}, species=3)
        return SimpleNamespace(reader=SimpleNamespace(label_key=target_key, image_key=input_key, dataset=table))

    monkeypatch.setattr(opening, "create_dataset", create)
    monkeypatch.setattr(opening, "_not_empty", lambda images: images)
    options = DataOptions(dataset="hfds/some/set", input_key="photo", target_key="species")
    dataset = open_dataset(options, "train")
    assert isinstance(dataset, ImageSet)
    assert dataset.labelled
    assert seen["input_key"] == "photo"
    with pytest.raises(DataError, match=r"no column 'kind' \(`target_key`\); it has: photo, species"):
        open_dataset(replace(options, target_key="kind"), "train")
    with pytest.raises(
        DataError, match=r"no images in a column 'image' \(`input_key`\); other columns: photo, species"
    ):
        open_dataset(replace(options, input_key=None), "train")


def test_torchvision_data_set_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="torch/cifar10"):
        opened(tmp_path, dataset="torch/cifar10")
    with pytest.raises(DataError, match="Unknown torchvision dataset"):
        opened(tmp_path, dataset="torch/nothing")


def test_torchvision_image_folder(image_folder: Path) -> None:
    dataset = opened(image_folder, dataset="torch/image_folder")
    assert (len(dataset), dataset.class_names) == (18, ("ant", "bee", "cat"))
    assert labels(dataset)[-1] == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"dataset": "imagenet"},
        {"dataset": "foo/bar"},
        {"batch_size": 0},
        {"workers": -1},
        {"num_samples": 0},
        {"crop_pct": 0.0},
        {"crop_pct": 1.5},
        {"std": (0.0,)},
        {"interpolation": "cubic"},
        {"crop_mode": "corner"},
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        DataOptions(**wrong)
