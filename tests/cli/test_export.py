"""`export`, and exported files where a verb takes a MODEL."""

from __future__ import annotations

import json
import os
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from vitcompact.cli.app import main

from .commands import VIT, Run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """A folder with `converted`, `folded` and `model.pt2`, made from a weights file, and what `export` said."""
    folder = tmp_path_factory.mktemp("made")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["convert", str(weights), "converted", *VIT, "--method", "pair", "-q"]) == 0
        assert main(["fold", "converted", "folded", "-q"]) == 0
        with redirect_stdout(StringIO()) as said:
            assert main(["export", "folded", "model.pt2", "--json", "-q"]) == 0
        (folder / "said.json").write_text(said.getvalue())
    finally:
        os.chdir(before)
    return folder


def test_export_says_what_was_checked_and_how_to_run_it(made: Path) -> None:
    found = json.loads((made / "said.json").read_text())
    assert {"format", "max_abs_diff", "rel_diff", "checked_with", "bytes", "out"} <= set(found)
    assert (found["format"], found["out"]) == ("pt2", str(made / "model.pt2"))
    assert found["rel_diff"] <= 1e-4
    assert found["checked_with"].startswith("torch.export")
    assert found["bytes"] == (made / "model.pt2").stat().st_size
    assert found["how_to_run"].startswith("torch.export.load('model.pt2')")


def test_eval_takes_a_file(run: Run, made: Path, images: Path) -> None:
    found = [
        json.loads(run("eval", made / name, "--data-dir", images, "--reference", made / "converted", "--json").out)
        for name in ("model.pt2", "folded")
    ]
    assert [each["top1"] for each in found] == [found[1]["top1"]] * 2
    assert found[0]["agreement"] == 1.0
    assert found[0]["cosine"] == pytest.approx(found[1]["cosine"], abs=1e-6)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("export", "{made}/converted", "model.pt2"), 2, "training form: fold first"),
        (("export", "{made}/folded", "model.pt3"), 2, "got '.pt3'; accepted: .onnx (ONNX)"),
        (("export", "{made}/folded"), 2, "no file was named"),
        (("export", "{made}/folded", "model.onnx", "--opset", "9"), 2, "--opset must be 18 to 23, got 9"),
        (("export", "{made}/folded", "model.onnx", "--int8"), 2, "--int8 is calibrated on images: give --data-dir"),
        (("export", "{made}/folded", "model.pt2", "--int8"), 2, "leave out --int8"),
        (("export", "{made}/folded", "{made}/model.pt2"), 2, "exists; give another name, or --overwrite"),
        (("export", "{made}/model.pt2", "model.onnx"), 2, "is an exported file: give the directory"),
        (("export", "model.onnx"), 2, "no model was given, and the workspace"),
        (("export", "no-such-model", "model.pt2"), 2, "no-such-model"),
        (("eval", "missing.onnx", "--data-dir", "{images}"), 2, "no such file: missing.onnx"),
        (("eval", "text.pt2", "--data-dir", "{images}"), 4, "text.pt2 is damaged or no .pt2 archive"),
        (("eval", "{made}/model.pt2", "--data-dir", "{images}", "--img-size", "48"), 2, "leave out --img-size"),
    ],
)
def test_bad_input(
    run: Run, made: Path, images: Path, tmp_path: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    (tmp_path / "text.pt2").write_text("no archive")
    result = run(*(word.format(made=made, images=images) for word in words))
    assert message in result.error, result.err
    assert result.code == code
    assert sorted(each.name for each in tmp_path.iterdir() if each.name != "vitcompact-out") == ["text.pt2"]


def test_failed_verification(run: Run, made: Path, tmp_path: Path) -> None:
    result = run("export", made / "folded", "model.pt2", "--fp16", "--atol", "1e-9")
    assert result.code == 5
    assert "differs from PyTorch" in result.error
    assert list(tmp_path.iterdir()) == []


def test_bench_takes_a_file(run: Run, made: Path) -> None:
    words = ("-b", "2", "--num-pairs", "1", "--warmup", "0", "--json")
    result = run("bench", made / "model.pt2", *words)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert "torch.export" in found["backend"]
    assert "timm fused" in found["baseline"]["backend"]  # the original that the file says it was made from
    assert 0 < found["macs_ratio"] < 1


def test_bench_shows_layers(run: Run, made: Path) -> None:
    result = run("bench", made / "folded", "-b", "1", "--num-pairs", "1", "--warmup", "0", "--layers")
    assert result.code == 0, result.err
    assert "Layers one by one" in result.out
    assert "blocks.0.attn" in result.out
