"""Budgets of latency, with a stopwatch that tells made-up seconds: the times of tiny models mean nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from vitcompact.analysis import count
from vitcompact.data import from_tensor
from vitcompact.errors import UsageError
from vitcompact.layers.attention import CompactAttention
from vitcompact.layers.factor import FactorizedLinear
from vitcompact.models import AttentionSite, FfnSite, inspect
from vitcompact.models.cost import meta_copy
from vitcompact.models.latency import Call, Host, relative_latency, wall_clock
from vitcompact.operators.factorize import FactorizeSpec
from vitcompact.operators.hallucinate import make_spec
from vitcompact.operators.neurons import NeuronsSpec
from vitcompact.operators.replay import replay
from vitcompact.operators.thin import ThinQkSpec, ThinVoSpec
from vitcompact.planning import planner as budget
from vitcompact.planning import serving
from vitcompact.planning.budget_plan import plan_budget
from vitcompact.planning.candidates import Losses, measure_losses
from vitcompact.planning.latency_target import plan_latency
from vitcompact.planning.planner import plan_for
from vitcompact.planning.request import Budget
from vitcompact.planning.serving import USUAL, Serving
from vitcompact.planning.site_structure import alike, built, recorded
from vitcompact.planning.site_time import FORWARDS, time_sites
from vitcompact.plans.schema import LayerPlan, Plan
from vitcompact.utils.timing import Reading

from .helpers import SIZE, perturbed_model

BATCH = 2
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("test_vit2", {"img_size": 64, "num_classes": 5, "num_heads": 4, "embed_dim": 96, "depth": 3}),
    "pvt": ("pvt_v2_b0", {"depths": (1, 2, 1, 1), "num_classes": 5}),
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (2, 1), "num_heads": (2, 4), "embed_dim": 32, "img_size": 224}),
}


def model_of(name: str) -> nn.Module:
    base, kwargs = MODELS[name]
    return perturbed_model(base, **kwargs)


@pytest.fixture(scope="module")
def vit() -> VisionTransformer:
    return model_of("vit")


@pytest.fixture(scope="module")
def losses(vit: nn.Module, images: Tensor) -> Losses:
    return measure_losses(vit, from_tensor(images, 16))


def by_macs(module: Any, call: Call, second: float = 1e9) -> float:
    """A run takes one second per `second` multiplications."""
    x = call.args[0]
    if x.dim() == 4:
        return BATCH * count(module, SIZE).macs / second
    widths = 0
    if isinstance(module, CompactAttention):
        widths = module.num_maps * module.qk_dim + module.num_heads * module.v_dim
    elif hasattr(module, "head_dim"):
        widths = 2 * module.num_heads * module.head_dim
    matrices = sum(parameter.numel() for parameter in module.parameters() if parameter.dim() == 2)
    return x.shape[0] * x.shape[1] * (matrices + x.shape[1] * widths) / second


def is_slow(module: nn.Module) -> bool:
    """Whether queries and values of one attention call differ in width, or a matrix is a product of two."""
    if isinstance(module, CompactAttention):
        return any(wide * module.v_dim != module.qk_dim for _, wide in module.layout.groups)
    return any(isinstance(part, FactorizedLinear) for part in module.modules())


def awkward(module: nn.Module, call: Call) -> float:
    """Like `by_macs`, but unequal widths miss a fast kernel and two thin products are no faster than one."""
    return by_macs(module, call) * (2 if is_slow(module) else 1)


Stopwatch = Callable[[nn.Module, Call], float]


def host(stopwatch: Stopwatch, **kwargs: Any) -> Host:
    """What runs nothing, and tells the stopwatch's seconds."""
    return Host(lambda modules, call: [partial(stopwatch, module, call) for module in modules], **kwargs)


def timed(model: nn.Module, losses: Losses, stopwatch: Stopwatch) -> Losses:
    class Run(Serving):
        host = property(lambda self: host(stopwatch))

    times = time_sites(model, losses.choices(), Run(batch_size=BATCH))
    return replace(losses, times=replace(times, serving=USUAL))


def macs_left(model: nn.Module) -> Callable[[Sequence[nn.Module]], list[Reading]]:
    return lambda several: [Reading((count(small, SIZE).macs / count(model, SIZE).macs,)) for small in several]


def test_where_time_follows_macs_so_does_the_plan(vit: VisionTransformer, losses: Losses) -> None:
    """Every option on the frontier is measured as it runs, and its time is what its multiplications say."""
    by_time = timed(vit, losses, by_macs)
    whole = count(vit, SIZE).macs
    for times, macs in zip(by_time.menus("latency"), losses.menus("macs"), strict=True):
        offered = {option.operators: option.saving for option in times.options}
        for option in macs.pareto():
            assert offered[option.operators] == pytest.approx(option.saving / whole)
    plans = (
        plan_latency(vit, by_time, Budget("latency", 0.8), macs_left(vit)),
        plan_budget(vit, losses, Budget("macs", 0.8)),
    )
    one, other = (sum(option.loss for option in found.chosen) for found in plans)
    assert one == pytest.approx(other, rel=1e-2)


def test_slow_kernels_are_avoided(vit: VisionTransformer, losses: Losses) -> None:
    """What MACs recommend is not what a plan for time takes where kernels dislike it."""

    def slow(plan: Plan) -> list[str]:
        small = replay(meta_copy(vit), plan.folded())
        return [layer.name for layer in plan.layers if is_slow(small.get_submodule(layer.name))]

    assert slow(plan_budget(vit, losses, Budget("macs", 0.7)).plan)
    plan = plan_latency(vit, timed(vit, losses, awkward), Budget("latency", 0.7), macs_left(vit)).plan
    assert plan.layers
    assert not slow(plan)


def test_a_machine_that_slows_down_and_recovers_changes_nothing(vit: VisionTransformer, losses: Losses) -> None:
    runs = 0

    def restless(module: nn.Module, call: Call) -> float:
        nonlocal runs
        runs += 1
        return awkward(module, call) * (1 + 4 * (runs // 61 % 2))

    calm, noisy = (timed(vit, losses, watch).times for watch in (awkward, restless))
    assert calm is not None
    assert noisy is not None
    for name, savings in calm.saved.items():
        assert noisy.saved[name] == pytest.approx(savings, abs=1e-3)


@pytest.mark.broad
def test_too_many_options_are_thinned_and_the_rest_not_offered(vit: VisionTransformer, losses: Losses) -> None:
    """On a slow machine fewer sizes are measured, within the time allowed, and only those can be chosen."""
    spent, seen = 0.0, set()

    def slow(module: nn.Module, call: Call) -> float:
        nonlocal spent
        spent += by_macs(module, call, 1e3)
        if call.args[0].dim() == 3:
            seen.add(tuple(tuple(parameter.shape) for parameter in module.parameters() if parameter.dim() == 2))
        return by_macs(module, call, 1e3)

    small = timed(vit, losses, slow)
    forward = by_macs(vit, Call((torch.empty(BATCH, *SIZE),)), 1e3)
    assert spent < FORWARDS * forward
    offered = 0
    for menu, all_options in zip(small.menus("latency"), losses.menus("macs"), strict=True):
        assert 2 < len(menu.options) < len(all_options.options)
        for option in menu.options:
            plan = Plan((LayerPlan(menu.name, menu.kind, option.operators),), form="folded")
            module = replay(meta_copy(vit), plan).get_submodule(menu.name)
            assert tuple(tuple(p.shape) for p in module.parameters() if p.dim() == 2) in seen
            offered += bool(option.operators)
    assert offered


@pytest.mark.parametrize("name", MODELS)
def test_what_is_timed_is_what_runs_once_folded(name: str) -> None:
    """Structure, settings and calling convention are those of the folded layer in its model."""
    model = model_of(name)
    before = copy.deepcopy(model.state_dict())
    anatomy = inspect(model)
    shape = (3, 224, 224) if name == "swin" else SIZE
    sites: list[AttentionSite | FfnSite] = [*anatomy.attention, *anatomy.ffn]
    structures, calls = recorded(model, [site.name for site in sites], torch.randn(1, *shape))
    for site in sites:
        module: Any = model.get_submodule(site.name)
        if isinstance(site, AttentionSite):
            heads = module.num_heads
            spec = make_spec(heads, {i: heads - 1 - i for i in range(heads // 2)}, ("mean",))
            layer = LayerPlan(site.name, "attention", (spec, ThinVoSpec(8)))
        else:
            layer = LayerPlan(site.name, "ffn", (NeuronsSpec(64), FactorizeSpec(8, branches=2)))
        folded = replay(meta_copy(model), Plan((layer,), form="folded")).get_submodule(site.name)
        timed_module = built(module, site, alike(layer.operators))
        wanted = {key: value.shape for key, value in folded.state_dict().items()}
        assert {key: value.shape for key, value in timed_module.state_dict().items()} == wanted
        call = calls[structures[site.name]]
        with torch.inference_mode():
            assert timed_module(*call.args, **call.kwargs).shape == module(*call.args, **call.kwargs).shape
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_sites_of_one_structure_share_a_measurement() -> None:
    """All blocks of a plain ViT; each stage of a hierarchy alone; shifted windows, which get a mask, alone."""
    kinds = {}
    for name, shape in (("vit", SIZE), ("pvt", SIZE), ("swin", (3, 224, 224))):
        model = model_of(name)
        names = [site.name for site in inspect(model).attention]
        structures, calls = recorded(model, names, torch.randn(1, *shape))
        assert set(structures.values()) == set(calls)
        kinds[name] = [[other for other in names if structures[other] == key] for key in calls]
    assert kinds["vit"] == [["blocks.0.attn", "blocks.1.attn", "blocks.2.attn"]]
    assert kinds["pvt"] == [["stages.1.blocks.0.attn", "stages.1.blocks.1.attn"]] + [
        [f"stages.{i}.blocks.0.attn"] for i in (2, 3)
    ]
    assert kinds["swin"] == [["layers.0.blocks.0.attn"], ["layers.0.blocks.1.attn"], ["layers.1.blocks.0.attn"]]


def test_heads_that_only_differ_in_who_is_whose_parent_are_alike() -> None:
    one, other = make_spec(4, {0: 1, 2: 3}, ("identity",)), make_spec(4, {3: 0, 1: 2}, ("identity",))
    crowded = make_spec(4, {0: 1, 2: 1}, ("identity",))
    assert alike((one, ThinQkSpec(8))) == alike((other, ThinQkSpec(8)))
    assert alike((one,)) != alike((crowded,))
    assert alike((one,)) != alike((make_spec(4, {0: 1, 2: 3}),))
    assert alike((FactorizeSpec(8, 2),)) == alike((FactorizeSpec(8),))


@pytest.mark.broad
def test_plan_for_measures_first(vit: VisionTransformer, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "host_of", lambda _: host(awkward))
    monkeypatch.setattr(serving, "relative_latency", lambda original, *_: macs_left(original))
    found = plan_for(vit, from_tensor(images, 16), Budget("latency", 0.8, serving=Serving(batch_size=BATCH)))
    assert found.plan.layers
    assert found.whole == 1
    with pytest.raises(UsageError, match="times of the model's layers"):
        measure_losses(vit, from_tensor(images, 16), ops=("neurons",)).menus("latency")


def test_layers_are_timed_once_for_any_number_of_budgets(
    vit: VisionTransformer, losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "relative_latency", lambda original, *_: macs_left(original))
    monkeypatch.setattr(serving, "host_of", lambda _: host(awkward))
    small = Serving(batch_size=BATCH)
    once = budget.timed(vit, losses, small)
    monkeypatch.setattr(budget, "time_sites", None)
    assert budget.timed(vit, once, small) is once
    targets = (0.9, 0.8)
    plans = [budget.plan_measured(vit, once, Budget("latency", target, serving=small)).plan for target in targets]
    assert plans[0] != plans[1]


def test_the_clock_runs(vit: VisionTransformer) -> None:
    assert wall_clock(vit, Call((torch.randn(1, *SIZE),))) > 0
    assert all(reading.share > 0 for reading in relative_latency(vit, SIZE, 2)([meta_copy(vit), vit]))
