"""Closed-form filters of the values: known ones are found, and they are the least-squares solution."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vitcompact.calibration.held_out import Parts, is_held_out
from vitcompact.errors import DataError
from vitcompact.layers.attention import CompactAttention, HeadLayout
from vitcompact.operators import filter_fit, refit
from vitcompact.operators.filter_fit import FilterMoments

LAYOUT = HeadLayout((1, 0), ((2,), ()))
PREFIX, GRID = 1, (3, 4)


def made(seed: int = 0) -> CompactAttention:
    torch.manual_seed(seed)
    core = CompactAttention(
        24, LAYOUT, 5, 7, identity=True, conv=True, num_prefix_tokens=PREFIX, grid_size=GRID, dim_out=10
    )
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return core.eval()


def moments_of(core: CompactAttention, x: Tensor, target: Tensor, name: str = "") -> FilterMoments:
    moments, inputs = FilterMoments(core, name), core.inputs(x)
    q, k, v = core.project(inputs)
    moments.add(v, core.mix(q, k, v, inputs), target)
    return moments


def filters(core: CompactAttention) -> Tensor:
    assert core.conv is not None
    return core.conv.weight


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 2**24])
@pytest.mark.parametrize("start", [0.0, 0.5])
def test_known_filters_are_found(monkeypatch: pytest.MonkeyPatch, chunk: int, start: float) -> None:
    """From silent filters and from wrong ones, whether or not a batch is cut into pieces."""
    monkeypatch.setattr(filter_fit, "CHUNK", chunk)
    monkeypatch.setattr(filter_fit, "FILTER_RIDGE", 1e-9)
    core, x = made(), torch.randn(40, PREFIX + 12, 24)
    target, wanted = core(x), filters(core).clone()
    filters(core).mul_(start)
    torch.testing.assert_close(moments_of(core, x, target).solve().float(), wanted, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_is_the_least_squares_solution() -> None:
    """Against every tap's contribution to the output, run through the layer itself one tap at a time."""
    core, x = made(), torch.randn(6, PREFIX + 12, 24)
    target = torch.randn(6, PREFIX + 12, 10)
    filters(core).zero_()
    left, columns = (target - core(x)).flatten(), []
    for tap in range(filters(core).numel()):
        filters(core).zero_().view(-1)[tap] = 1.0
        columns.append(core(x).flatten())
    filters(core).zero_()
    taps = (torch.stack(columns, 1) - core(x).flatten()[:, None]).double()
    gram = taps.T @ taps
    ridge = filter_fit.FILTER_RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    wanted = torch.linalg.solve(gram + ridge, taps.T @ left.double()).reshape(3, 3, 3)
    torch.testing.assert_close(moments_of(core, x, target).solve(), wanted, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_nan_names_the_layer() -> None:
    core, x = made(), torch.randn(2, PREFIX + 12, 24)
    x[0, 3, 0] = float("nan")
    with pytest.raises(DataError, match=r"blocks\.3\.attn"):
        moments_of(core, x, torch.zeros(2, PREFIX + 12, 10), "blocks.3.attn")


@torch.no_grad()
def test_held_out_images_do_not_shape_the_filters() -> None:
    """Targets of the held-out ones are nonsense: the filters are those that all other images ask for."""
    core, x = made(), torch.randn(64, PREFIX + 12, 24)
    target, wanted = core(x), filters(core).clone()
    held = torch.tensor([is_held_out(i, 64) for i in range(64)])
    target[held] = 1e3
    filters(core).zero_()

    seen = SimpleNamespace(args=(x,), kwargs={}, parts=Parts.of(0, 64, 64))
    images: Any = SimpleNamespace(inputs=lambda *_, **__: [(seen, torch.cat((target, target), dim=-1))])
    layer: Any = SimpleNamespace(name="blocks.0.attn")
    found = refit._filters(images, layer, core, 0.5)
    torch.testing.assert_close(found.float(), wanted, rtol=1e-2, atol=1e-2)
