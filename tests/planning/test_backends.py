"""Budgets of latency on other runtimes than eager PyTorch: what is run there, how often, and what is refused."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, get_args

import pytest
import timm
import torch
from torch import Tensor, nn

from vitcompact.data import from_tensor
from vitcompact.errors import UsageError
from vitcompact.exporting import FORMATS, RUNTIMES, host_of
from vitcompact.exporting.timed import _Together
from vitcompact.models import inspect
from vitcompact.models.cost import count, meta_copy
from vitcompact.models.latency import Call, Host, relative_latency
from vitcompact.options.compaction import CompactionOptions
from vitcompact.options.shared import BACKENDS, Backend
from vitcompact.planning import planner, serving, site_time
from vitcompact.planning.candidates import Losses, measure_losses
from vitcompact.planning.planner import plan_measured
from vitcompact.planning.request import Budget, budget_of
from vitcompact.planning.serving import Serving
from vitcompact.planning.site_structure import built, recorded
from vitcompact.reporting.budget import unit_text

from .helpers import SIZE, perturbed_model


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return perturbed_model("test_vit2", img_size=64, num_classes=5, num_heads=4, embed_dim=64, depth=2)


@pytest.fixture(scope="module")
def losses(vit: nn.Module, images: Tensor) -> Losses:
    return measure_losses(vit, from_tensor(images[:16], 16), ops=("hallucinate", "neurons"), weigh=False)


class Counting:
    """A host that converts nothing, and takes as long as multiplications say; `prepared` are its modules."""

    def __init__(self, name: str) -> None:
        self.prepared: list[nn.Module] = []
        self.host = Host(self._prepare, converts=True, name=name)

    def _prepare(self, modules: Sequence[nn.Module], call: Call) -> list[Callable[[], float]]:
        self.prepared += modules
        seconds = [self._seconds(module, call) for module in modules]
        return [partial(float, each) for each in seconds]

    @staticmethod
    def _seconds(module: nn.Module, call: Call) -> float:
        if call.whole:
            return count(module, SIZE).macs / 1e9
        return sum(p.numel() for p in module.parameters() if p.dim() == 2) * call.args[0][..., 0].numel() / 1e9


def test_everything_timed_runs_there_and_few_of_it(
    vit: nn.Module, losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers, whole plans and schedules of merging; each structure once, and of many sizes some."""
    counting = Counting("onnxruntime")
    monkeypatch.setattr(serving, "host_of", lambda backend: {"onnxruntime": counting.host}[backend])
    monkeypatch.setattr(site_time, "CONVERTED", 30)
    budget = Budget("latency", 0.8, serving=Serving("onnxruntime", 2))
    found = plan_measured(vit, losses, budget)
    reached = found.plan.reached
    assert reached is not None
    assert (reached.backend, reached.batch_size, reached.dtype, reached.target) == ("onnxruntime", 2, None, 0.8)
    assert reached.left == pytest.approx(0.8, rel=0.03)
    assert "latency 0.8" in str(found.plan)
    assert "on onnxruntime, 2 images per batch" in str(found.plan)
    layers = [module for module in counting.prepared if not hasattr(module, "blocks")]
    assert 2 * 8 <= len(layers) <= 30 + 2 + 2 * 5  # the whole layers come along with each chunk
    models = [module for module in counting.prepared if hasattr(module, "blocks")]
    assert models[0] is vit


def test_a_plan_that_is_timed_again_is_not_converted_again(vit: nn.Module) -> None:
    counting = Counting("openvino")
    read, small = relative_latency(vit, SIZE, 2, host=counting.host), meta_copy(vit)
    assert read([small])[0].share == read([small])[0].share == 1.0
    assert len(counting.prepared) == 2
    read([small, meta_copy(vit)])
    assert len(counting.prepared) == 3


def test_times_of_another_runtime_do_not_count(vit: nn.Module, losses: Losses, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = {name: Counting(name) for name in ("onnxruntime", "openvino")}
    monkeypatch.setattr(serving, "check_runtime", lambda _: None)  # neither is run
    monkeypatch.setattr(serving, "host_of", lambda backend: hosts[backend].host)
    one = Serving("onnxruntime", 2)
    once = planner.timed(vit, losses, one)
    assert once.times is not None
    assert once.times.serving == one
    assert planner.timed(vit, once, one) is once
    other = planner.timed(vit, once, Serving("openvino", 2))
    assert other.times is not None
    assert other.times.serving.backend == "openvino"
    assert hosts["openvino"].prepared
    before = len(hosts["onnxruntime"].prepared)
    planner.timed(vit, once, Serving("onnxruntime", 1))
    assert len(hosts["onnxruntime"].prepared) > before


def test_what_is_timed_runs_as_it_is_served(vit: nn.Module, losses: Losses, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and images of layers and whole models, in the number format and batches asked for; the model stays."""
    counting, calls = Counting("torch"), list[Call]()
    kinds: set[torch.dtype] = set()

    def prepare(modules: Sequence[nn.Module], call: Call) -> list[Callable[[], float]]:
        calls.append(call)
        for module in modules:
            module(*call.args, **call.kwargs)  # which would not go together in two formats
            kinds.update(p.dtype for p in module.parameters())
        return counting.host.prepare([copy.deepcopy(module).float() for module in modules], call)

    monkeypatch.setattr(serving, "host_of", lambda _: Host(prepare))
    found = plan_measured(vit, losses, Budget("latency", 0.8, serving=Serving("torch", 3, "bfloat16"))).plan
    assert {call.args[0].dtype for call in calls} == {torch.bfloat16}
    assert {len(call.args[0]) for call in calls} == {3}
    assert kinds == {torch.bfloat16}
    assert {p.dtype for p in vit.parameters()} == {torch.float32}
    assert found.reached is not None
    assert (found.reached.batch_size, found.reached.dtype) == (3, "bfloat16")
    assert "in bfloat16, 3 images per batch" in str(found)


def broad(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.broad)


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("test_vit2", {"img_size": 64, "num_classes": 5, "num_heads": 4, "embed_dim": 96, "depth": 1}),
    "pvt, with a grid": ("pvt_v2_b0", {"depths": (1, 1, 1, 1), "num_classes": 5}),
    "eva, with rotary positions": ("eva02_tiny_patch14_224", {"img_size": 28, "depth": 1}),
    "swin, with a mask": (
        "swin_tiny_patch4_window7_224",
        {"depths": (2,), "num_heads": (2,), "embed_dim": 32, "img_size": 56},
    ),
}


@pytest.mark.parametrize("name", [next(iter(KINDS)), *(broad(name) for name in list(KINDS)[1:])])
@torch.no_grad()
def test_layers_alone_compute_what_they_do_in_the_model(name: str) -> None:
    """With the calls that they get: positions, masks and sizes of grids among them. Each output by itself."""
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    base, kwargs = KINDS[name]
    model = timm.create_model(base, **kwargs).eval()
    site = inspect(model).attention[-1]
    size = kwargs.get("img_size", 64)
    structures, calls = recorded(model, [site.name], torch.randn(2, 3, size, size))
    call, module = calls[structures[site.name]], model.get_submodule(site.name)
    modules = [module, built(module, site, ())]
    with torch.inference_mode(False):
        together = _Together(modules, call)
        runs = FORMATS[".onnx"].loaded(together.traced(whole=False), together.tensors)
    wanted = module(*call.args, **call.kwargs)
    assert len(runs) == 2
    for run in runs:
        outputs: Any = run()
        assert torch.allclose(torch.from_numpy(outputs[0]), wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["onnxruntime", broad("openvino"), pytest.param("compile", marks=pytest.mark.slow)])
def test_a_whole_model_is_timed_there(name: Backend) -> None:
    shape = {"img_size": 32, "depth": 1, "embed_dim": 32, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=4, **shape).eval()
    for module in FORMATS[RUNTIMES[name]].modules if name in RUNTIMES else ():
        pytest.importorskip(module, reason=f"{module} is not installed")
    read = relative_latency(model, (3, 32, 32), 2, host=host_of(name))
    assert 0 < read([meta_copy(model)])[0].share < 10


def test_compiled_modules_each_have_their_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch gives up compiling after eight structures of one code object; candidates are more than that."""
    seen: list[Any] = []

    def compiled(function: Any, **_: Any) -> Any:
        seen.append(function.__code__)
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    runs = host_of("compile").prepare([nn.Linear(2, 2), nn.Linear(2, 3)], Call((torch.randn(1, 2),)))
    assert all(run() > 0 for run in runs)
    assert len({id(code) for code in seen}) == 2


def test_the_backends_are_those_of_bench() -> None:
    assert set(BACKENDS) == set(get_args(Backend))
    assert [host_of(name).name for name in get_args(Backend)] == list(get_args(Backend))
    assert unit_text({"unit": "latency", "backend": "openvino"}) == "time in OpenVINO"
    assert unit_text({"unit": "latency", "backend": "torch", "dtype": "bfloat16"}) == "time in bfloat16"
    assert unit_text({"unit": "latency", "backend": "compile", "dtype": "float16"}) == "time in torch.compile, float16"
    assert unit_text({"unit": "latency", "backend": "torch"}) == unit_text({"unit": "latency"}) == "time"


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        (lambda: budget_of(0.8, None, None, None, latency_backend="openvino"), "give `target_latency` with it"),
        (lambda: budget_of(None, None, None, None, latency_backend="torch"), "give `target_latency` with it"),
        (lambda: budget_of(0.8, None, None, None, latency_batch=1), "`latency_batch` .*give `target_latency` with it"),
        (lambda: budget_of(None, 0.8, None, None, latency_dtype="bfloat16"), "`latency_dtype` .*give `target_latency`"),
        (lambda: Serving("tensorrt"), "`latency_backend` takes 'torch', 'compile', "),  # type: ignore[arg-type]
        (lambda: Serving(batch_size="1"), "`latency_batch` cannot be '1', a str"),  # type: ignore[arg-type]
        (lambda: Serving(dtype="int8"), "`latency_dtype` takes 'bfloat16', 'float16', got 'int8'"),  # type: ignore[arg-type]
        (lambda: Serving("openvino", dtype="bfloat16"), "leave out `latency_dtype`"),
        (lambda: budget_of(None, None, 0.8, None, latency_batch=0), "`latency_batch` must be at least 1, got 0"),
        (lambda: CompactionOptions(macs=0.5, latency_dtype="bfloat16"), "give `speedup` with it"),
        (lambda: CompactionOptions(macs=0.5, latency_backend="compile"), "give `speedup` with it"),
        (lambda: CompactionOptions(max_drop=0.5, latency_backend="compile"), "give `speedup` with it"),
    ],
)
def test_refused(asked: Callable[[], object], part: str) -> None:
    with pytest.raises(UsageError, match=part):
        asked()


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_that_is_missing_is_named_with_its_extra(name: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    missing = FORMATS[RUNTIMES[name]].modules[-1]
    monkeypatch.setattr(importlib.util, "find_spec", lambda module, *rest: None if module == missing else found(module))
    with pytest.raises(UsageError, match=rf"pip install 'vitcompact\[{FORMATS[RUNTIMES[name]].extra}\]'"):
        Budget("latency", 0.8, serving=Serving(name))
    assert Serving("compile").host.name == "compile"


def test_budgets_say_where_they_were_timed(vit: nn.Module, losses: Losses, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitcompact.planning.budget_report import budget_json

    counting = Counting("onnxruntime")
    monkeypatch.setattr(serving, "host_of", lambda _: counting.host)
    document = budget_json(plan_measured(vit, losses, Budget("latency", 0.9, serving=Serving("onnxruntime", 2))))
    told = json.loads(json.dumps(document))
    assert (told["backend"], told["batch_size"], told["dtype"]) == ("onnxruntime", 2, None)
    assert budget_json(plan_measured(vit, losses, Budget("macs", 0.9)))["backend"] is None
