"""Choosing kept heads and parents."""

from __future__ import annotations

import itertools
import math

import pytest
import timm
import torch

import vitcompact
from tests.attached import plan_of
from vitcompact.errors import DataError
from vitcompact.layers.attention import CompactAttention, HeadLayout
from vitcompact.operators import pair_heads
from vitcompact.operators.hallucinate import parents_in
from vitcompact.operators.pairing import CopyCosts, assignment, attention_maps, num_hallucinated, shortlist


@pytest.mark.parametrize(
    ("ratio", "heads", "wanted"), [(0.5, 6, 3), (0.5, 3, 1), (0.9, 2, 1), (0.99, 4, 3), (0.1, 6, 0), (0.3, 10, 3)]
)
def test_number_of_heads(ratio: float, heads: int, wanted: int) -> None:
    assert num_hallucinated(ratio, heads) == wanted


def test_assignment_is_the_cheapest() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((1, 1), (3, 3), (4, 6)):
        costs = torch.rand(rows, columns, generator=generator).tolist()
        best = min(
            itertools.permutations(range(columns), rows), key=lambda p: sum(costs[i][j] for i, j in enumerate(p))
        )
        assert tuple(assignment(costs)) == best


def test_of_equal_costs_the_first_columns_are_taken() -> None:
    """So that a plan does not depend on how a sum was rounded; its costs are cut to their leading digits."""
    assert assignment([[1.0] * 5] * 3) == [0, 1, 2]
    assert assignment([[2.0, 1.0, 1.0, 1.0]] * 2) == [1, 2]


def brute_force(costs: torch.Tensor, count: int) -> float:
    heads, best = range(len(costs)), math.inf
    for chosen in itertools.combinations(heads, count):
        kept = [h for h in heads if h not in chosen]
        cap = math.ceil(count / len(kept))
        for parents in itertools.product(kept, repeat=count):
            if max(parents.count(p) for p in kept) <= cap:
                best = min(best, sum(float(costs[c, p]) for c, p in zip(chosen, parents, strict=True)))
    return best


@pytest.mark.parametrize(("heads", "count"), [(3, 1), (6, 3), (5, 3), (4, 3)])
def test_shortlist_begins_with_the_best(heads: int, count: int) -> None:
    costs = torch.rand(heads, heads, generator=torch.Generator().manual_seed(heads))
    found = shortlist(costs, count, 4)
    totals = [sum(float(costs[c, p]) for c, p in parents.items()) for parents in found]
    assert totals == sorted(totals)
    assert totals[0] == pytest.approx(brute_force(costs, count))
    assert all(not set(parents) & set(parents.values()) for parents in found)


def test_many_heads_are_searched_by_swaps(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = torch.rand(8, 8, generator=torch.Generator().manual_seed(1))
    exact = sum(float(costs[c, p]) for c, p in shortlist(costs, 4, 1)[0].items())
    monkeypatch.setattr("vitcompact.operators.pairing.EXHAUSTIVE_LIMIT", 0)
    found = sum(float(costs[c, p]) for c, p in shortlist(costs, 4, 1)[0].items())
    assert found <= 1.2 * exact


@torch.no_grad()
def test_copy_cost_is_the_output_error_of_copying() -> None:
    torch.manual_seed(0)
    core = CompactAttention(8, HeadLayout((0, 1, 2), ((), (), ())), 4, 4).eval()
    x = torch.randn(2, 5, 8)
    inputs = core.inputs(x)
    q, k, v = core.project(inputs)
    maps, values = attention_maps(core, q, k, inputs), v.unflatten(-1, (3, 4)).transpose(1, 2)
    costs = CopyCosts(3, 4)
    costs.add(maps[:1], values[:1])
    costs.add(maps[1:], values[1:])
    copied = maps.clone()
    copied[:, 2] = maps[:, 0]
    error = ((copied - maps) @ values).transpose(1, 2).flatten(2) @ core.proj.weight.T
    assert float(costs.matrix(core.proj.weight)[2, 0]) == pytest.approx(float(error.square().sum()), rel=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_costs_that_are_not_finite_are_refused(value: float) -> None:
    costs = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
    costs[2, 4] = value
    with pytest.raises(DataError, match="not finite"):
        shortlist(costs, 3, 4)


@pytest.mark.parametrize("normalised", [False, True])
@torch.no_grad()
def test_of_the_shortlist_that_is_taken_which_is_best_once_proj_is_solved(
    normalised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads 0 and 1 have the same map; heads whose outputs are normalised together are taken as they were listed."""
    torch.manual_seed(0)
    model = timm.create_model(
        "test_vit", depth=1, embed_dim=32, num_heads=4, img_size=64, num_classes=3, scale_attn_norm=normalised
    ).eval()
    qkv = model.get_parameter("blocks.0.attn.qkv.weight").normal_().unflatten(0, (3, 4, 8))
    qkv[:2, 1] = qkv[:2, 0]
    listed = [{2: 3}, {1: 0}]
    monkeypatch.setattr(pair_heads, "shortlist", lambda *_: listed)
    compact = vitcompact.convert(model, images=torch.randn(64, 3, 64, 64), ratio=0.25, only="heads")
    assert [parents_in(layer) for layer in plan_of(compact).layers] == [listed[0 if normalised else 1]]


@torch.no_grad()
def test_a_head_that_the_output_does_not_see_goes_first() -> None:
    """Heads 0 and 1 are most alike; what head 2 adds is large, but in channels that no answer hangs on."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", depth=1, embed_dim=32, num_heads=4, img_size=64, num_classes=3).eval()
    qkv = model.get_parameter("blocks.0.attn.qkv.weight").normal_().unflatten(0, (3, 4, 8))
    qkv[:2, 1] = qkv[:2, 0] + 0.3 * qkv[:2, 1]
    model.get_parameter("blocks.0.attn.proj.weight")[:8, 16:24] = 0.0
    model.get_parameter("blocks.0.mlp.fc2.weight").zero_()
    model.get_parameter("head.weight")[:, 8:] = 0.0
    images, hallucinated = torch.randn(64, 3, 64, 64), []
    for without in ((), ("sensitivity",)):
        compact = vitcompact.convert(model, images=images, ratio=0.25, only="heads", without=without)
        hallucinated.append([set(parents_in(layer)) for layer in plan_of(compact).layers])
    assert hallucinated == [[{2}], [{0}]]
