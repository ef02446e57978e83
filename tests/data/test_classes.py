"""Class folders that are renamed, reordered or missing never shift the labels of a model that knows its classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
from timm.models import VisionTransformer

from vitcompact.data import DataOptions, evaluation_batches, training_loader
from vitcompact.data.classes import class_names
from vitcompact.errors import DataError

from .image_files import as_tar, fill


def knowing(names: list[str] | None, **cfg: Any) -> VisionTransformer:
    model = timm.create_model("test_vit", img_size=32, num_classes=len(names or "abc"))
    model.pretrained_cfg.update(cfg if names is None else {"label_names": names, **cfg})
    return model


def labels_of(model: VisionTransformer, root: Path, **options: Any) -> list[int]:
    batches = evaluation_batches(model, DataOptions(data_dir=root, **options))
    return [int(label) for _, labels in batches for label in labels]


BY_NAME = "matched by the model's class names"
# Names of the model, class folders, the label of each folder, and what is said.
MATCHED: dict[str, tuple[list[str], tuple[str, ...], list[int], str]] = {
    "same": (["ant", "bee", "cat"], ("ant", "bee", "cat"), [0, 1, 2], ""),
    "reordered": (["cat", "ant", "bee"], ("ant", "bee", "cat"), [1, 2, 0], BY_NAME),
    "subset": (["ant", "bee", "cat", "dog"], ("bee", "dog"), [1, 3], BY_NAME),
    "first of all": (["ant", "bee", "cat", "dog"], ("ant", "bee"), [0, 1], ""),
    "case and signs": (
        ["Red Ant", "honey-bee"],
        ("honey_bee", "red_ant"),
        [1, 0],
        BY_NAME,
    ),
    "one of several names": (
        *(["tench, Tinca tinca", "goldfish, Carassius"], ("goldfish", "tench")),
        *([1, 0], BY_NAME),
    ),
    "no name of the model's": (
        ["x", "y", "z"],
        ("ant", "bee", "cat"),
        [0, 1, 2],
        "no class (ant, bee, cat)",
    ),
    "another number": (["x", "y", "z"], ("ant", "bee"), [0, 1], "has 2 classes, the model's head has 3"),
}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
@pytest.mark.parametrize("kind", MATCHED)
def test_labels_are_the_model_s(kind: str, packed: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names, folders, labels, said = MATCHED[kind]
    root = fill(tmp_path / "images", folders, each=1)
    root = as_tar(root, tmp_path / "images.tar") if packed else root
    assert labels_of(knowing(names), root) == labels
    assert said in caplog.text if said else not caplog.text


@pytest.mark.parametrize(
    ("names", "folders", "message"),
    [
        (
            ["ant", "bee", "cat"],
            ("ant", "bee", "dog"),
            r"\(dog\) are none of the model's \(ant, bee, cat",
        ),
        (["ant", "bee", "cat"], ("ant", "bees", "cats"), r"2 of 3 classes \(bees, cats\)"),
        (["ant", "bee"], ("ant", "bee", "cat"), r"1 of 3 classes \(cat\)"),
        (["ant", "bee"], ("ant", "Ant", "bee"), r"(ant, Ant|Ant, ant) are one class of the model"),
        (["red ant", "bee"], ("red_ant", "red-ant"), "are one class of the model"),
    ],
)
def test_folders_of_which_some_are_the_model_s_are_refused(
    names: list[str], folders: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    root = fill(tmp_path / "images", folders, each=1)
    with pytest.raises(DataError, match=message):
        labels_of(knowing(names), root)
    training_loader(knowing(names), DataOptions(data_dir=root, batch_size=1))  # which needs no labels


def test_a_class_map_says_all(tmp_path: Path) -> None:
    root = fill(tmp_path / "images", each=1)
    (tmp_path / "map.txt").write_text("cat\nant\nbee\n")
    assert labels_of(knowing(["bee", "cat", "ant"]), root, class_map=str(tmp_path / "map.txt")) == [1, 2, 0]


def test_training_labels_are_the_model_s_too(tmp_path: Path) -> None:
    root = fill(tmp_path / "images", each=1)
    options = DataOptions(data_dir=root, batch_size=3)
    loader = training_loader(knowing(["cat", "ant", "bee"]), options, augment=None)
    assert sorted(loader._dataset.load(index)[1] for index in range(3)) == [0, 1, 2]  # type: ignore[attr-defined]
    assert loader._dataset.load(0)[1] == 1  # type: ignore[attr-defined]


def test_names_that_a_configuration_has() -> None:
    described = knowing(["n01", "n02"], label_descriptions={"n01": "tench, Tinca tinca", "n02": "goldfish"})
    assert class_names(described) == {
        "n01": 0,
        "n02": 1,
        "tench, tinca tinca": 0,
        "tench": 0,
        "tinca tinca": 0,
        "goldfish": 1,
    }
    assert class_names(knowing(["ant", "Ant"])) == {}
    assert class_names(knowing(None)) == {}
    assert class_names(knowing(None, label_names=["one"])) == {}
    assert class_names(knowing(["crane, bird", "crane, machine"])) == {
        **{"crane, bird": 0, "crane, machine": 1},
        **{"bird": 0, "machine": 1},
    }
