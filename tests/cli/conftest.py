"""The command line called in this process, a few small images, and one finished job that tests look at."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from vitcompact.cli.app import main

from .commands import PAIR, VIT, Result, Run, write_images


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Calls `vitcompact` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*words: object) -> Result:
        capfd.readouterr()
        code = main([str(word) for word in words])
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train` and `val`, two classes each."""
    root = tmp_path_factory.mktemp("data") / "images"
    write_images(root / "train", 8)
    write_images(root / "val", 4)
    return root


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare weights file of a `test_vit` of two blocks for two classes at 32 px."""
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model("test_vit", num_classes=2, img_size=32, depth=2).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def finished_job(tmp_path_factory: pytest.TempPathFactory, images: Path, weights: Path) -> Path:
    """A folder in which all four verbs ran, with its workspace `vitcompact-out`."""
    folder = tmp_path_factory.mktemp("job")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["analyze", str(weights), *VIT, "--data-dir", str(images), *PAIR, "-q"]) == 0
        assert main(["convert", "--ratio", "0.5", "-q"]) == 0
        assert main(["finetune", "--steps", "2", "-b", "8", "-q"]) == 0
        assert main(["fold", "-q"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def job(finished_job: Path, tmp_path: Path) -> Path:
    """A copy of the finished job's workspace in the folder where `run` works."""
    shutil.copytree(finished_job / "vitcompact-out", tmp_path / "vitcompact-out")
    return tmp_path / "vitcompact-out"
