"""Fewer hidden units: the criterion, compensation and rebuilding of every kind of FFN."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import vitcompact
from vitcompact.calibration.held_out import Parts
from vitcompact.calibration.least_squares import LeastSquares, Split
from vitcompact.errors import UsageError
from vitcompact.models import inspect
from vitcompact.operators import neurons
from vitcompact.operators.neurons import keep_units, removal_order
from vitcompact.operators.steps import size_steps
from vitcompact.plans.schema import LayerPlan, Plan


def rows(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(seed: int = 0, units: int = 24, outputs: int = 6) -> tuple[LeastSquares, Tensor, Tensor]:
    hidden = (rows(seed, 500, units) @ rows(seed + 1, units, units)).relu()
    weight = rows(seed + 2, outputs, units)
    statistics = LeastSquares()
    statistics.add(hidden, hidden @ weight.T)
    return statistics, hidden, weight


def test_one_removal_costs_what_the_surgeon_says() -> None:
    """The rise of the error is that of a direct solution without the unit, and the unit is the cheapest."""
    statistics, hidden, weight = problem()
    removal = removal_order(statistics, weight, keep=23, sizes=(23,), judge=statistics)
    target = hidden @ weight.T
    direct = {}
    for unit in range(24):
        rest = [i for i in range(24) if i != unit]
        features = torch.cat((hidden[:, rest], torch.ones(500, 1, dtype=hidden.dtype)), 1)
        gap = features @ torch.linalg.lstsq(features, target).solution - target
        direct[unit] = float(gap.square().sum(1).mean())
    gone = min(direct, key=direct.__getitem__)
    assert int(removal.order[0]) == gone
    assert removal.error[23] == pytest.approx(direct[gone], rel=1e-2)


def test_units_stay_whose_errors_matter() -> None:
    """With one output that counts, the units that carry it are kept."""
    hidden, weight = rows(0, 400, 12).relu(), torch.zeros(3, 12, dtype=torch.float64)
    weight[0, :4], weight[1:, 4:] = 1.0, 5.0
    target = hidden @ weight.T
    split = Split.empty("ffn")
    split.add(hidden[:, None], torch.cat((target, target), -1)[:, None], Parts((350, 50), (False, True)))
    bias, root = torch.zeros(3, dtype=torch.float64), torch.diag(torch.tensor([100.0, 0.1, 0.1], dtype=torch.float64))
    assert set(range(4)) <= set(neurons.fit(split, weight, bias, 6, root).units.tolist())
    assert not set(range(4)) <= set(neurons.fit(split, weight, bias, 6).units.tolist())


def test_dependent_units_go_for_free() -> None:
    hidden = rows(0, 400, 12)
    hidden = torch.cat((hidden, hidden @ rows(1, 12, 8)), dim=1)
    weight = rows(2, 5, 20)
    split = Split.empty("ffn")
    target = hidden @ weight.T + 1.0
    split.add(hidden[:, None], torch.cat((target, target), -1)[:, None], Parts((350, 50), (False, True)))
    fitted = neurons.fit(split, weight, torch.ones(5, dtype=torch.float64), 12)
    assert fitted.error < 1e-4
    got = hidden[:, fitted.units] @ fitted.weight.T + fitted.bias
    assert (got - target).square().mean() < 1e-3 * target.var()


def test_removal_is_near_the_best_of_all_choices() -> None:
    statistics, _, weight = problem(units=8, outputs=3)
    whole = LeastSquares()
    kept = removal_order(statistics, weight, keep=4).kept(4)
    whole = statistics

    def error(units: tuple[int, ...]) -> float:
        part = whole.select(torch.tensor(units))
        return part.error(part.solve(1e-9))

    errors = sorted(error(units) for units in itertools.combinations(range(8), 4))
    assert error(tuple(kept.tolist())) <= errors[len(errors) // 10]


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("test_vit", {}),
        ("vit_giant_patch14_dinov2", {"embed_dim": 48, "depth": 1, "img_size": 56, "num_heads": 4}),
        ("aimv2_large_patch14_224", {"embed_dim": 48, "depth": 1, "img_size": 56, "num_heads": 4}),
        ("pvt_v2_b0", {"depths": (1, 1, 1, 1)}),
        ("nextvit_small", {"depths": (1, 1, 5, 1)}),
    ],
)
@torch.no_grad()
def test_units_that_do_nothing_leave_no_trace(name: str, kwargs: dict[str, Any]) -> None:
    """With the outgoing weights of some units zero, the FFN without them gives the same."""
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs).eval()
    site = inspect(model).ffn[0]
    ffn, output = model.get_submodule(site.name), model.get_submodule(site.output)
    hidden = output.weight.shape[1]
    units = torch.randperm(hidden)[: hidden // 2]
    dead = torch.ones(hidden, dtype=torch.bool)
    dead[units] = False
    output.weight[:, dead] = 0
    channels = next(ffn.parameters()).shape[1]
    x = torch.randn(2, channels, 4, 4) if site.channel_dim == 1 else torch.randn(2, 16, channels)
    args = ((4, 4),) if name.startswith("pvt") else ()
    wanted = ffn(x, *args)
    keep_units(model, site, units)
    torch.testing.assert_close(ffn(x, *args), wanted, rtol=1e-4, atol=1e-5)
    assert model.get_submodule(site.output).weight.shape[1] == hidden // 2
    if name != "nextvit_small":
        assert sum(p.numel() for p in ffn.parameters()) < 0.6 * (hidden * channels * 3)


@pytest.mark.parametrize("from_images", [True, False])
@torch.no_grad()
def test_units_that_are_not_needed_go_without_a_trace(from_images: bool) -> None:
    """Those that nothing comes out of; LayerScale goes into the output layer."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", embed_dim=32, num_heads=2, depth=1, img_size=64, num_classes=3, init_values=1.0
    ).eval()
    mlp, scale = model.get_submodule("blocks.0.mlp"), model.get_parameter("blocks.0.ls2.gamma")
    scale.copy_(torch.rand(32) + 0.5)
    for name in ("fc1.weight", "fc2.weight", "fc2.bias"):
        mlp.get_parameter(name).normal_(std=3.0 if name == "fc2.bias" else 0.5)
    mlp.get_parameter("fc2.weight")[:, 1::2] = 0
    images = torch.randn(64, 3, 64, 64)
    plan = Plan(layers=(LayerPlan("blocks.0.mlp", "ffn", (neurons.NeuronsSpec(64),)),))
    compact = vitcompact.convert(model, images=images if from_images else None, plan=plan)
    assert compact.get_submodule("blocks.0.mlp.fc1").out_features == 64
    x = torch.randn(4, 3, 64, 64)
    assert float((compact(x) - model(x)).abs().max() / model(x).std()) < 0.02


def test_normalised_units_are_refused() -> None:
    model = timm.create_model("test_vit", scale_mlp_norm=True)
    with pytest.raises(UsageError, match="hidden units are normalised"):
        keep_units(model, inspect(model).ffn[0], torch.arange(8))


@pytest.mark.parametrize(("full", "step"), [(1536, 64), (800, 32), (400, 16), (100, 8), (8, 8)])
def test_sizes_rise_in_equal_steps_of_whole_eights(full: int, step: int) -> None:
    assert size_steps(full) == list(range(step, full, step))
    assert all(isinstance(size, int) for size in size_steps(full))
