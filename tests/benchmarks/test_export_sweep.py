"""The sweep over exports: a cell says what differs, is not run twice, and a failure is no success."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import export_sweep
import pytest
import timm
import torch
from torch import nn

import vitcompact


def run(file: Path, *more: str) -> int:
    return export_sweep.main([str(file), "--models", "tiny", "--formats", ".pt2", *more])


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A sweep over one tiny model, and the methods that it was compacted by."""
    done: list[str] = []
    shape = {"img_size": 32, "depth": 1, "embed_dim": 16, "num_heads": 1}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=4, **shape).eval()

    def compacted(model: nn.Module, images: Any, method: str) -> nn.Module:
        done.append(method)
        return model

    monkeypatch.setattr(export_sweep, "names", lambda: {"tiny": (".onnx", ".pt2")})
    monkeypatch.setattr(export_sweep, "small", lambda name: (model, torch.zeros(1, 3, 32, 32)))
    monkeypatch.setattr(export_sweep, "compacted", compacted)
    return done


def test_cells_are_measured_once(sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    assert run(file, "--methods", "pair") == 0
    (row,) = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    assert (row["model"], row["method"], row["format"], row["passed"]) == ("tiny", "pair", ".pt2", True)
    assert list(row["rel_diff"]) == ["1", "3", "8"]
    assert max(row["rel_diff"].values()) <= 1e-4
    assert "| `.pt2` | 1 | 1 |" in capsys.readouterr().out
    assert run(file, "--methods", "pair") == 0
    assert sweep == ["pair"]


def test_failures_are_listed_and_tried_again(
    sweep: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    with monkeypatch.context() as broken:
        broken.setattr(vitcompact, "export", lambda *args, **options: 1 / 0)
        assert run(file, "--methods", "budget") == 1
    assert "- `tiny`, budget, `.pt2`: ZeroDivisionError" in capsys.readouterr().out
    assert run(file, "--methods", "budget") == 0
    assert sweep == ["budget", "budget"]
