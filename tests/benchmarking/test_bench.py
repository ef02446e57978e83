from __future__ import annotations

import json
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from vitcompact.benchmarking import BatchResult, BenchResult, bench
from vitcompact.benchmarking.memory import peak_memory, weight_bytes
from vitcompact.benchmarking.timing import PairedTimes
from vitcompact.errors import ThresholdError, UsageError


class Clock:
    """Each reading is later than the one before by the next of `steps`."""

    def __init__(self, step: float = 0.5) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Hungry(nn.Module):
    """Runs out of memory above a batch size."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.weight = limit, nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.limit:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return images.mean((1, 2, 3)) * self.weight


class Named(nn.Module):
    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return timm.create_model("test_vit", img_size=32)


def run(model: nn.Module, baseline: nn.Module, **options: Any) -> BenchResult:
    settings = {"batch_sizes": (2,), "num_pairs": 2, "warmup": 0, "clock": Clock(), **options}
    return bench(model, baseline, **settings)


def test_json_has_the_keys_of_the_contract(model: nn.Module) -> None:
    result = run(model, model, batch_sizes=(4, 1, 4), macs=(30, 40))
    found = result.to_json()
    assert json.loads(json.dumps(found)) == found
    assert set(found["latency_ms"]) == {"p50", "p95"}
    assert set(found["baseline"]) == {"latency_ms", "samples_per_sec", "peak_memory_bytes", "backend"}
    assert {"samples_per_sec", "speedup", "macs_ratio", "backend", "batches", "notes"} <= set(found)
    assert [batch["batch_size"] for batch in found["batches"]] == [1, 4]
    assert (found["batch_size"], found["macs_ratio"], found["input_size"]) == (4, 0.75, [3, 32, 32])
    assert run(model, model).to_json()["macs_ratio"] is None


def test_figures_follow_from_the_clock(model: nn.Module) -> None:
    result = run(model, model, batch_sizes=(8,))
    side = result.headline.model
    assert (side.latency_ms.p50, side.latency_ms.p95, side.samples_per_sec) == (500.0, 500.0, 16.0)
    assert (result.speedup, result.headline.speedup_interval, result.headline.num_pairs) == (1.0, (1.0, 1.0), 2)


def test_models_are_not_changed(model: nn.Module) -> None:
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(model, model, dtype=torch.bfloat16, channels_last=True)
    assert model.training
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])


def test_backend_says_how_both_ran(model: nn.Module) -> None:
    replaced = timm.create_model("test_vit", img_size=32)
    for block in replaced.blocks:
        block.attn.backend = "wide sdpa"
    result = run(replaced, model, channels_last=True)
    count = len(replaced.blocks)
    assert result.backend.startswith("cpu (")
    assert result.backend.endswith(f"float32, channels last, attention: wide sdpa x{count}")
    assert result.baseline_backend.endswith(f"attention: timm fused x{count}")
    assert "bfloat16 autocast" in run(model, model, amp_dtype=torch.bfloat16).backend
    assert "bfloat16" in run(model, model, dtype=torch.bfloat16).backend


def test_unfused_baseline_is_noted(model: nn.Module) -> None:
    baseline = timm.create_model("test_vit", img_size=32)
    baseline.blocks[0].attn.fused_attn = False
    assert any("unfused" in note for note in run(model, baseline).notes)
    assert not run(model, model).notes


def test_batch_sizes_that_do_not_fit_are_left_out() -> None:
    result = run(Hungry(4), Hungry(100), batch_sizes=(1, 4, 8), input_size=8)
    assert [batch.batch_size for batch in result.batches] == [1, 4]
    assert result.notes == ("batch size 8 left out: not enough memory",)
    with pytest.raises(UsageError, match="not even batch size 8"):
        run(Hungry(4), Hungry(4), batch_sizes=(8, 16), input_size=8)


def test_a_busy_machine_is_noted() -> None:
    class Uneven(Clock):
        def __call__(self) -> float:
            self.step *= 1.5
            return super().__call__()

    result = run(Hungry(9), Hungry(9), input_size=8, num_pairs=6, clock=Uneven())
    assert any("the machine was busy" in note for note in result.notes)


@pytest.mark.parametrize(
    ("size", "shape"), [(48, [3, 48, 48]), ((32, 48), [3, 32, 48]), ((1, 8, 8), [1, 8, 8]), (None, [3, 224, 224])]
)
def test_input_sizes(size: object, shape: list[int]) -> None:
    assert run(Hungry(9), Hungry(9), input_size=size).to_json()["input_size"] == shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": ()}, "`batch_sizes` must be positive"),
        ({"batch_sizes": (0, 1)}, "`batch_sizes` must be positive"),
        ({"input_size": 20}, "cannot run on images of 2 x 3 x 20 x 20"),
        ({"input_size": (1, 2, 3, 4)}, "`input_size` must be"),
        ({"device": "nowhere"}, "no device 'nowhere'"),
    ],
)
def test_wrong_options_are_refused(model: nn.Module, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(model, model, **options)


def test_threshold() -> None:
    batch = BatchResult.of(8, PairedTimes([1.0, 1.0], [1.2, 1.2]), (None, None), seed=0)
    result = BenchResult((batch,), (3, 32, 32), "cpu", "cpu")
    result.check_speedup(1.2 - 1e-9)
    with pytest.raises(ThresholdError, match=r"1\.200 at batch size 8") as caught:
        result.check_speedup(1.25)
    assert caught.value.exit_code == 6


def test_peak_memory_grows_with_the_batch_and_holds_the_weights() -> None:
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)).eval()
    weights = 4 * (64 * 256 + 256 + 256 * 64 + 64)
    assert weight_bytes(model) == weights

    def peak(batch: int) -> int | None:
        images = torch.randn(batch, 64)
        with torch.inference_mode():
            return peak_memory(model, lambda: model(images), torch.device("cpu"))

    small, large = peak(8), peak(16)
    assert small is not None
    assert large is not None
    # hidden units before and after the ReLU are alive together
    assert small - weights >= 2 * 4 * 8 * 256
    assert large - weights == pytest.approx(2 * (small - weights), rel=0.2)


def test_shared_weights_count_once() -> None:
    layer = nn.Linear(8, 8, bias=False)
    assert weight_bytes(nn.Sequential(layer, layer)) == 4 * 64


def test_named_backends_are_counted() -> None:
    from vitcompact.benchmarking.setup import attention_backends

    assert attention_backends(nn.Sequential(Named("a"), Named("b"), Named("a"))) == {"a": 2, "b": 1}
