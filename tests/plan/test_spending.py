"""Spending a budget: the best choice, targets never missed, and what a user may ask for."""

from __future__ import annotations

import itertools
import random

import pytest

from vitcompact.errors import UsageError
from vitcompact.plan.budget import Menu, Option, spend
from vitcompact.plan.request import Budget, budget_of, check_budget
from vitcompact.plan.specs import NeuronsSpec


def menus(seed: int, count: int = 4, options: int = 5) -> list[Menu]:
    rng = random.Random(seed)
    spec = NeuronsSpec(8)
    return [
        Menu(
            f"layer{i}", "ffn", tuple(Option((spec,), rng.uniform(1, 9), (rng.uniform(0, 9),)) for _ in range(options))
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_the_cheapest_choice_is_found(seed: int, share: float) -> None:
    layers = menus(seed)
    curve = spend(layers)
    wanted = share * curve.reachable
    chosen = curve.choose(wanted)
    assert chosen is not None
    assert sum(option.saving for option in chosen) >= wanted
    nothing = Option((), 0.0, ())
    everything = itertools.product(*[(nothing, *menu.options) for menu in layers])
    best = min(sum(o.harm for o in pick) for pick in everything if sum(o.saving for o in pick) >= wanted)
    assert sum(option.harm for option in chosen) <= best * 1.05 + 1e-9


def test_harm_rises_with_saving() -> None:
    curve = spend(menus(1))
    finite = [harm for harm in curve.harm if harm < float("inf")]
    assert finite == sorted(finite)
    assert finite[0] == 0.0
    assert curve.choose(curve.reachable * 1.01) is None


def test_dominated_options_are_never_offered() -> None:
    spec = NeuronsSpec(8)
    menu = Menu("a", "ffn", (Option((spec,), 1.0, (5.0,)), Option((spec,), 2.0, (1.0,)), Option((spec,), 0.0, (0.0,))))
    assert [(o.saving, o.harm) for o in menu.pareto()] == [(0.0, 0.0), (2.0, 1.0)]


def test_no_layers_no_budget() -> None:
    assert spend([]).choose(1.0) is None


@pytest.mark.parametrize("target", [0.0, 1.0, -1.0, float("nan")])
def test_targets_are_fractions(target: float) -> None:
    with pytest.raises(UsageError, match="--target-macs must be between 0 and 1"):
        Budget("macs", target)


def test_what_excludes_what() -> None:
    assert budget_of(None, None, None, None) is None
    assert budget_of(None, 0.5, None, ["neurons"]) == Budget("params", 0.5, ("neurons",))
    with pytest.raises(UsageError, match="one of --target-macs and --target-latency"):
        budget_of(0.5, None, 0.5, None)
    with pytest.raises(UsageError, match="--ops narrows a budget"):
        budget_of(None, None, None, ["neurons"])
    with pytest.raises(UsageError, match="got 'prune'"):
        budget_of(0.5, None, None, ["prune"])
    budget = Budget("macs", 0.8)
    with pytest.raises(UsageError, match="leave out --ratio"):
        check_budget(budget, (0.5, None), None, "images")
    with pytest.raises(UsageError, match="leave out --target-macs"):
        check_budget(budget, (None, None), object(), "images")
    with pytest.raises(UsageError, match="needs images"):
        check_budget(budget, (None, None), None, None)
