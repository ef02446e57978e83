"""`eval --probe`: which images fit it and which judge it, what is written, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from .commands import SMALL, Run, write_images

KNN = ("--probe", "knn", "--probe-k", "5")


def test_fitted_to_the_training_split_beside_the_recorded_original(run: Run, job: Path, images: Path) -> None:
    done = run("eval", job / "folded", "--data-dir", images, *KNN, "--probe-num-samples", "12", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["probe"] == {"name": "knn", "num_samples": 12}
    assert found["num_samples"] == 8
    assert found["probe_images"] == str(images / "train")
    assert found["images"] == str(images / "val")
    assert {"top1", "agreement", "reference", "change", "cosine", "neighbour_agreement"} <= set(found)
    shown = run("eval", job / "folded", "--data-dir", images / "val", *KNN, "--probe-data-dir", images / "train").out
    assert "votes of the nearest neighbours, fitted to 16 images" in shown
    assert "95 % interval" in shown
    assert "cosine of pooled features" in shown


def test_the_chain_goes_on_with_the_recorded_images(run: Run, job: Path, images: Path) -> None:
    done = run("eval", "--probe", "linear", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["probe"] == {"name": "linear", "num_samples": 16}


def test_classes_are_matched_by_name(run: Run, images: Path, tmp_path: Path) -> None:
    """Folders of images to judge by that lack the first classes: their labels do not shift."""
    write_images(tmp_path / "fit", 6)
    shutil.copytree(tmp_path / "fit" / "cat", tmp_path / "fit" / "ant")
    for name in ("cat", "dog"):
        shutil.copytree(tmp_path / "fit" / name, tmp_path / "judge" / name)
    shutil.rmtree(tmp_path / "fit" / "ant")
    write_images(tmp_path / "more", 6)
    (tmp_path / "more" / "cat").rename(tmp_path / "fit" / "ant")
    words = ("--model-kwargs", "num_classes=0", "--probe", "knn", "--probe-k", "1")
    done = run(
        "eval", "test_vit", "--random-weights", "--img-size", "32", *words, "--data-dir", "judge",
        "--probe-data-dir", "fit", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(done.out)["top1"] == 100.0, "each image is its own nearest neighbour"
    assert "at least 12 of the images to evaluate on" in done.err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (
            ("--data-dir", "{images}/val", "--probe", "knn"),
            "give --probe-data-dir, or a --data-dir with a training split",
        ),
        (("--data-dir", "{images}", "--probe", "knn"), "--probe-k 20: there are only 16 labelled images"),
        (("--data-dir", "{images}", "--probe-k", "3"), "--probe-k is for a probe"),
        (("--data-dir", "{images}", "--probe", "mlp"), "'mlp' is not one of 'knn', 'linear'"),
        (("--data-dir", "{images}", *KNN, "--probe-data-dir", "flat"), "flat has no classes: a --probe needs labelled"),
        (("--data-dir", "flat", *KNN, "--probe-data-dir", "{images}"), "flat has no classes: a --probe needs labelled"),
        (("--data-dir", "other", *KNN, "--probe-data-dir", "{images}"), "1 of 2 classes (bird) are not among those"),
        (("--data-dir", "{images}", *KNN, "--probe-data-dir", "nowhere"), "no such folder or tar: nowhere"),
        (("--data-dir", "{images}", *KNN, "--probe-num-samples", "0"), "--probe-num-samples must be at least 1"),
    ],
)
def test_refused(words: tuple[str, ...], part: str, run: Run, images: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "other", 1)
    shutil.copytree(tmp_path / "other" / "cat", tmp_path / "flat")
    (tmp_path / "other" / "cat").rename(tmp_path / "other" / "bird")
    result = run("eval", "test_vit", *SMALL, *(word.format(images=images) for word in words))
    assert result.code == 2
    assert part in result.error
