"""What is published names no folder of this machine, and whoever is on the machine finds the files again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vitcompact.utils.places import KEPT, found, is_absolute, published, without_folders


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("/home/ann/models/vit.pth", "vit.pth"),
        ("local-dir:/home/ann/vit", "local-dir:vit"),
        ("C:\\models\\vit.pth", "vit.pth"),
        ("~/vit", "vit"),
        ("~no-user-of-this-machine/vit", "~no-user-of-this-machine/vit"),
        ("~no-user\0/vit", "~no-user\0/vit"),
        ("/", "root"),
        ("vit_small_patch16_224", "vit_small_patch16_224"),
        ("hf-hub:org/name", "hf-hub:org/name"),
        ("images/train", "images/train"),
        ("../images", "../images"),
    ],
)
def test_only_the_last_name_is_left(text: str, name: str) -> None:
    assert without_folders(text) == name
    assert is_absolute(text) == (text != name)


def test_paths_come_back_where_they_are_known(tmp_path: Path) -> None:
    near, far = tmp_path / "ann" / "ckpt", Path("/elsewhere/of/ann/val.tar")
    document = {
        "provenance": {"source": f"local-dir:{near}"},
        "options": {"data_dir": str(far), "words": ["a", str(near)]},
    }
    told, places = published(document, tmp_path / "out")
    text = json.dumps([told, places])
    assert str(tmp_path) not in text
    assert "/elsewhere" not in text
    assert told["options"]["data_dir"] == "val.tar"
    assert places["provenance/source"] == "../ann/ckpt"  # moves with the folder above both
    assert places["options/data_dir"].startswith(KEPT)
    assert found(told, places, tmp_path / "out") == document


def test_elsewhere_names_stay_as_they_were_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = {"options": {"data_dir": "/elsewhere/val.tar", "source": str(tmp_path / "a" / "ckpt")}}
    told, places = published(document, tmp_path / "out")
    monkeypatch.setenv("VITCOMPACT_CACHE", str(tmp_path / "another-machine"))
    again = found(told, places, tmp_path / "moved" / "out")
    assert again["options"]["data_dir"] == "val.tar"
    assert again["options"]["source"] == str(tmp_path / "moved" / "a" / "ckpt")


def test_without_a_home_names_are_published_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may run as a user that has none."""
    monkeypatch.setenv("VITCOMPACT_CACHE", "~no-user-of-this-machine/cache")
    told, places = published({"data_dir": "/elsewhere/val.tar"}, tmp_path)
    assert told == {"data_dir": "val.tar"}
    assert found(dict(told), places, tmp_path) == told


@pytest.mark.parametrize(
    "places",
    [
        None,
        [1],
        {"a/b": "../x"},
        {"options/data_dir": 3},
        {"options/data_dir": "/etc/val.tar"},
        {"options/data_dir": KEPT + "../../../etc/passwd"},
        {"options/data_dir": "../passwd"},
        {"options/words/9": "../x"},
        {"options": "../x", "options/data_dir/0": "x", "": "x"},
    ],
)
def test_places_of_strangers_change_nothing(places: object, tmp_path: Path) -> None:
    document = {"options": {"data_dir": "val.tar", "words": ["x"]}}
    assert found(json.loads(json.dumps(document)), places, tmp_path) == document


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITCOMPACT_CACHE", str(tmp_path / "file"))
    told, places = published({"a": "/elsewhere/b"}, tmp_path)
    assert told == {"a": "b"}
    assert found(told, places, tmp_path) == {"a": "b"}
