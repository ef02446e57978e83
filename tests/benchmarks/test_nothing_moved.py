"""The net under the inside of the library: it holds on unchanged code, and a single weight cannot slip through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nothing_moved
import pytest
import torch
from torch import Tensor, nn

CASES = ("weights", "merge-4")


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "record.json"
    assert run("--record", path) == 0
    return path


def run(task: str, path: Path, model: str = "beit") -> int:
    return nothing_moved.main([task, str(path), "--models", model, "--cases", *CASES])


@pytest.fixture(autouse=True)
def _threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_same_code_gives_the_same_bits(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(record.read_text(encoding="utf-8"))["cases"]["beit merge-4"] == {"refused": "UsageError"}
    assert run("--compare", record) == 0
    assert "2 compared, 0 different" in capsys.readouterr().out


def test_the_last_bit_of_one_weight_is_seen_and_named(
    record: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = nothing_moved.build

    def moved(name: str, data: Path) -> tuple[nn.Module, Tensor]:
        model, images = build(name, data)
        with torch.no_grad():
            weight = model.get_parameter("blocks.1.norm1.weight")
            weight[0] = torch.nextafter(weight[0], torch.tensor(torch.inf))
        return model, images

    monkeypatch.setattr(nothing_moved, "build", moved)
    assert run("--compare", record) == 1
    assert "DIFFERENT convert: blocks.1.norm1.weight was" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda case: case["fold"].update(merge_tokens=[1]), "fold: 1 merge_tokens, now 0"),
        (lambda case: case["convert"]["layers"][0].update(name="x"), "convert: layers was {'name': 'x'"),
        (lambda case: case["convert"].update(sha256="0"), "convert: sha256 was 0"),
        (lambda case: case.update(refused="DataError"), "was DataError, is converted"),
    ],
)
def test_what_else_moves_is_named(
    record: Path, tmp_path: Path, change: Any, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(record.read_text(encoding="utf-8"))
    change(document["cases"]["beit weights"])
    (tmp_path / "record.json").write_text(json.dumps(document), encoding="utf-8")
    assert run("--compare", tmp_path / "record.json") == 1
    assert where in capsys.readouterr().out


def test_what_cannot_be_told_is_no_success(
    record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as incomplete:
        run("--compare", record, "swin")
    assert "lacks swin merge-4, swin weights" in capsys.readouterr().err
    with pytest.raises(SystemExit) as no_data:
        nothing_moved.main(
            ["--record", str(tmp_path / "x.json"), "--models", "vit_small_features", "--data", str(tmp_path)]
        )
    assert "--data" in capsys.readouterr().err
    monkeypatch.setattr(nothing_moved, "facts", lambda: {"cpu": "other", "torch": "0"})
    with pytest.raises(SystemExit) as elsewhere:
        run("--compare", record)
    assert "recorded elsewhere" in capsys.readouterr().err
    assert incomplete.value.code == no_data.value.code == elsewhere.value.code == 2
