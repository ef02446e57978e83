"""What others may read names no folder of this machine, and the chain goes on all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from vitcompact.cli.app import main

from .commands import PAIR, VIT, Run


def texts(folder: Path) -> dict[str, str]:
    """Everything in files but weights."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path): path.read_bytes().decode("utf-8", errors="replace")
        for path in files
        if path.suffix != ".safetensors"
    }


@pytest.fixture(scope="module")
def explicit(weights: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model converted and folded into named directories, everything given by absolute paths, with a report."""
    made = tmp_path_factory.mktemp("published") / "made"
    words = ["convert", weights, made / "out", *VIT, "--data-dir", images, *PAIR]
    assert main([str(word) for word in (*words, "--report", made / "page.html", "-q")]) == 0
    assert main(["fold", str(made / "out"), str(made / "folded"), "-q"]) == 0
    assert main(["export", str(made / "folded"), str(made / "model.onnx"), "-q"]) == 0
    return made


def test_no_file_holds_an_absolute_path(explicit: Path, weights: Path, images: Path) -> None:
    written = texts(explicit)
    assert {Path(name).name for name in written} >= {
        "vitcompact.json",
        "README.md",
        "config.json",
        "page.html",
        "model.onnx",
    }
    for name, text in written.items():
        for folder in (explicit.parent, weights.parent, images.parent, Path.home(), Path.cwd()):
            assert str(folder) not in text, name


def test_the_chain_goes_on_from_any_folder(
    explicit: Path, run: Run, weights: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path.parent)
    for model in ("folded", "model.onnx"):
        judged = run("eval", explicit / model, "--data-dir", images / "val", "--json")
        assert judged.code == 0, judged.err
        assert "reference" in json.loads(judged.out), judged.err
    config = explicit / "out" / "vitcompact.json"
    again = run("convert", weights, tmp_path / "again", "--config", config, "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["options"]["data_dir"] == str(images)


def test_a_folded_card_keeps_what_conversion_measured(explicit: Path) -> None:
    before, after = (ModelCard.load(explicit / name / "README.md").text for name in ("out", "folded"))
    for row in ("| same top-1 class |", "| parameters |", "| MACs per image |"):
        (first,), (second,) = ([line for line in card.splitlines() if line.startswith(row)] for card in (before, after))
        assert first == second
    assert "training form" in before
    assert "training form" not in after.partition("## Limits")[2]
    assert "vitcompact fold out folded" in after
