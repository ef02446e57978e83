"""Both sides run on one backend, exported files on their own; layers are timed one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import vitcompact
from vitcompact.benchmarking import bench, layers
from vitcompact.benchmarking.result import LayerTime
from vitcompact.data import resolve_input
from vitcompact.errors import UsageError
from vitcompact.exporting import ExportedModel
from vitcompact.exporting.base import Opened
from vitcompact.exporting.description import describe

QUICK: dict[str, Any] = {"batch_sizes": (2,), "num_pairs": 1, "warmup": 0}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=24, num_heads=2, num_classes=3)


@pytest.fixture(scope="module")
def folded(model: nn.Module) -> nn.Module:
    return vitcompact.fold(vitcompact.convert(model.eval(), ratio=0.5, rank_ratio=0.5))


def as_file(model: nn.Module, name: str) -> ExportedModel:
    """A stand-in for a file that its runtime has opened."""
    description = describe(model, "int8", ("images", "outputs"))
    return ExportedModel(Opened(description, model.eval(), "Runtime 1.0"), Path(name))


def test_an_exported_file_decides_the_backend(
    model: nn.Module, folded: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[nn.Module, str]] = []

    def hosted(each: nn.Module, name: str) -> ExportedModel:
        asked.append((each, name))
        return each if isinstance(each, ExportedModel) else as_file(each, "made.onnx")

    monkeypatch.setattr("vitcompact.benchmarking.setup.hosted", hosted)
    monkeypatch.setattr("vitcompact.benchmarking.setup.check_runtime", lambda name: None)
    file = as_file(folded, "model.onnx")
    result = bench(file, model, **QUICK)
    assert asked == [(file, "onnxruntime"), (model, "onnxruntime")]
    assert result.backend == result.baseline_backend == f"cpu ({torch.get_num_threads()} threads), Runtime 1.0, int8"
    assert result.headline.model.peak_memory_bytes is None


def test_pytorch_runs_an_archive_beside_a_model(model: nn.Module, folded: nn.Module) -> None:
    result = bench(as_file(folded, "model.pt2"), model, **QUICK)
    assert "Runtime 1.0" in result.backend
    assert "attention: timm fused" in result.baseline_backend


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "onnxruntime", "dtype": torch.bfloat16}, "`backend='onnxruntime'` runs float32 on the CPU"),
        ({"backend": "openvino", "channels_last": True}, "leave out `device`, `dtype`, `amp` and `channels_last`"),
        ({"backend": "onnxruntime", "torchcompile": True}, "`torchcompile` is `backend='compile'`"),
        ({"layers": True, "torchcompile": True}, "leave out `backend='compile'`"),
    ],
)
def test_what_a_backend_does_not_take(
    folded: nn.Module, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("vitcompact.benchmarking.setup.check_runtime", lambda name: None)
    with pytest.raises(UsageError) as caught:
        bench(folded, folded, **QUICK, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("backend", ["torch", "compile", "openvino"])
def test_a_file_runs_on_its_own_runtime_only(folded: nn.Module, monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    monkeypatch.setattr("vitcompact.benchmarking.setup.check_runtime", lambda name: None)
    with pytest.raises(UsageError, match=r"model.onnx runs on Runtime 1.0, not on `backend='" + backend):
        bench(as_file(folded, "model.onnx"), folded, backend=backend, **QUICK)


def test_what_is_not_installed_is_said_before_the_work(folded: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitcompact.exporting.base.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'vitcompact\[openvino\]'"):
        bench(folded, folded, backend="openvino", **QUICK)


@pytest.mark.broad
def test_onnxruntime_runs_both(model: nn.Module, folded: nn.Module) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    result = bench(folded, model, backend="onnxruntime", **QUICK)
    assert "ONNX Runtime" in result.backend
    assert "ONNX Runtime" in result.baseline_backend


def test_layers_are_those_of_the_plan(model: nn.Module, folded: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def relative_times(runs: Any, rounds: int, warmup: int) -> tuple[float, list[float]]:
        for run in runs:
            run()
            seen.append(run.args[1].args[0])
        return 0.002, [0.5 if len(seen) == 2 else 1.25]

    monkeypatch.setattr(layers, "relative_times", relative_times)
    result = bench(folded, model, layers=True, **QUICK)
    first, second = result.layers
    assert (first.name, second.name) == ("blocks.0.attn", "blocks.0.mlp")
    assert (first.baseline_ms, first.ms, first.speedup, first.slower) == (2.0, 1.0, 2.0, False)
    assert (second.speedup, second.slower) == (0.8, True)
    assert 0 < first.macs_ratio < 1
    assert all(tokens.shape == (2, 5, 24) for tokens in seen)
    assert [row["name"] for row in result.to_json()["layers"]] == ["blocks.0.attn", "blocks.0.mlp"]


def test_layers_need_a_converted_model(model: nn.Module) -> None:
    with pytest.raises(UsageError, match="this model has none"):
        bench(model, model, layers=True, **QUICK)


def test_slower_is_more_than_scatter() -> None:
    assert not LayerTime("a", 1.02, 1.0, 0.98, 0.5).slower
    assert LayerTime("a", 1.1, 1.0, 0.91, 0.5).slower


def test_a_file_is_timed_at_its_own_size(folded: nn.Module) -> None:
    assert resolve_input(as_file(folded, "model.pt2")).input_size == (3, 32, 32)
