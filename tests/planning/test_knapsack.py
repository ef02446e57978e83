"""Spending a budget: the best choice, targets never missed, and what a user may ask for."""

from __future__ import annotations

import itertools
import random

import pytest

from vitcompact.errors import UsageError
from vitcompact.operators.neurons import NeuronsSpec
from vitcompact.planning.knapsack import BINS, INFINITE, Menu, Option, spend
from vitcompact.planning.request import Budget, budget_of, check_budget


def menus(seed: int, count: int = 4, options: int = 5) -> list[Menu]:
    rng = random.Random(seed)
    spec = NeuronsSpec(8)
    return [
        Menu(
            f"layer{i}", "ffn", tuple(Option((spec,), rng.uniform(1, 9), (rng.uniform(0, 9),)) for _ in range(options))
        )
        for i in range(count)
    ]


def option_of(saving: float, loss: float) -> Option:
    return Option((NeuronsSpec(8),), saving, (loss,))


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
    best = min(sum(o.loss for o in pick) for pick in everything if sum(o.saving for o in pick) >= wanted)
    assert sum(option.loss for option in chosen) <= best * 1.05 + 1e-9


@pytest.mark.parametrize("part", [0.5, 0.6, 0.99])
def test_a_target_is_not_missed_by_rounding(part: float) -> None:
    """Many savings that each fill a whole number of steps and a part: rounded up, their sum would be too large."""
    savings = [3 + part] * 40
    rest = BINS - sum(savings)
    layers = [Menu(f"layer{i}", "ffn", (option_of(saving, 1.0),)) for i, saving in enumerate([*savings, rest])]
    curve = spend(layers)
    for count in (1, 7, 20, 40):
        chosen = curve.choose(count * (3 + part))
        assert chosen is not None
        assert sum(option.saving for option in chosen) >= count * (3 + part) - 1e-9


def test_loss_rises_with_saving() -> None:
    curve = spend(menus(1))
    finite = [loss for loss in curve.loss if loss < float("inf")]
    assert finite == sorted(finite)
    assert finite[0] == 0.0
    assert curve.choose(curve.reachable * 1.01) is None


def test_dominated_options_are_never_offered() -> None:
    spec = NeuronsSpec(8)
    menu = Menu("a", "ffn", (Option((spec,), 1.0, (5.0,)), Option((spec,), 2.0, (1.0,)), Option((spec,), 0.0, (0.0,))))
    assert [(o.saving, o.loss) for o in menu.pareto()] == [(0.0, 0.0), (2.0, 1.0)]


def test_no_layers_no_budget() -> None:
    assert spend([]).choose(1.0) is None


def random_menus(rng: random.Random, *, whole_numbers: bool) -> list[Menu]:
    """Menus of 0 to 7 options; with whole numbers, full of ties and of options that save nothing."""

    def draw(least: int) -> float:
        return float(rng.randint(least, 4)) if whole_numbers else rng.choice([1.0, 1e9]) * rng.random()

    def option() -> Option:
        losses = tuple(draw(0) for _ in range(rng.randint(1, 2)))
        return Option((NeuronsSpec(8),) * len(losses), draw(0), losses)

    return [
        Menu(f"layer{i}", "ffn", tuple(option() for _ in range(rng.randint(0, 7)))) for i in range(rng.randint(0, 4))
    ]


def offered(menu: Menu) -> list[tuple[float, float]]:
    """Saving and loss of what a menu is to offer: nothing, and whatever no other option beats, by rising saving."""
    pairs = {(o.saving, o.loss) for o in menu.options if o.saving > 0}
    kept = [p for p in pairs if not any(q != p and q[0] >= p[0] and q[1] <= p[1] for q in pairs)]
    return [(0.0, 0.0), *sorted(kept)]


def spent_by_hand(menus: list[Menu]) -> tuple[list[float], list[list[int]], list[list[int]]]:
    """Least loss at every bin, chosen option of every menu at every bin, and bins of every option, one at a time."""
    total = sum(offered(menu)[-1][0] for menu in menus)
    unit = total / BINS if total else 1.0
    least = [0.0] + [INFINITE] * BINS
    tables, steps = [], []
    for menu in menus:
        steps.append([int(saving / unit) for saving, _ in offered(menu)])
        before, least, table = least, [], []
        for target in range(BINS + 1):
            loss, index = INFINITE, 0
            for i, (step, (_, added)) in enumerate(zip(steps[-1], offered(menu), strict=True)):
                if before[max(target - step, 0)] + added < loss:  # of equal ones, the first
                    loss, index = before[max(target - step, 0)] + added, i
            least.append(loss)
            table.append(index)
        tables.append(table)
    return least, tables, steps


@pytest.mark.parametrize("whole_numbers", [False, True], ids=["any", "ties"])
@pytest.mark.parametrize("seed", range(4))
def test_spending_is_bit_for_bit_what_it_is_by_hand(seed: int, whole_numbers: bool) -> None:
    layers = random_menus(random.Random(seed), whole_numbers=whole_numbers)
    curve = spend(layers)
    least, tables, steps = spent_by_hand(layers)
    assert [[(o.saving, o.loss) for o in menu.pareto()] for menu in layers] == [offered(menu) for menu in layers]
    assert list(curve.loss) == least
    assert [list(table) for table in curve._tables] == tables
    assert [list(each) for each in curve._steps] == steps
    for share in (0.0, 0.3, 0.7, 1.0):
        wanted = share * curve.reachable
        chosen: list[Option] = []
        left = next((i for i in range(BINS + 1) if curve.saving[i] >= wanted and least[i] < INFINITE), -1)
        for menu, table, each in reversed(list(zip(layers, tables, steps, strict=True))):
            if left >= 0:
                chosen.insert(0, menu.pareto()[table[left]])
                left = max(left - each[table[left]], 0)
        found = curve.choose(wanted)
        assert (found is None) == (left < 0)
        assert found is None or all(a is b for a, b in zip(found, chosen, strict=True))


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_exact_where_every_saving_is_a_whole_number_of_bins(seed: int) -> None:
    """Savings that add up to 4000, so that a bin is 1 and nothing is rounded."""
    rng = random.Random(seed)
    layers = []
    for i, most in enumerate((1000, 1600, 1400)):
        savings = [most, *(rng.randint(1, most - 1) for _ in range(5))]
        layers.append(Menu(f"layer{i}", "ffn", tuple(option_of(s, rng.randint(0, 20) + s / 100) for s in savings)))
    curve = spend(layers)
    assert curve.reachable == BINS
    picks = list(itertools.product(*[(option_of(0, 0), *menu.options) for menu in layers]))
    for wanted in (1, 555, 2000, 3210, 4000):
        best = min(sum(o.loss for o in pick) for pick in picks if sum(o.saving for o in pick) >= wanted)
        chosen = curve.choose(wanted)
        assert chosen is not None
        assert sum(o.saving for o in chosen) >= wanted
        assert sum(o.loss for o in chosen) == pytest.approx(best, rel=1e-12)
        assert curve.loss[wanted] == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_a_saving_is_rounded_down_so_that_a_target_is_never_missed(seed: int) -> None:
    """With an option just under a whole number of bins: rounded to the nearest, it would be taken for enough."""
    rng = random.Random(seed)
    edge = rng.randint(100, 3000)
    short = option_of(edge - rng.uniform(0.01, 0.49), 1.0)
    enough = option_of(edge + rng.uniform(1.0, 5.0), 2.0)
    curve = spend([Menu("a", "ffn", (short, enough, option_of(BINS, 9.0)))])
    assert curve.choose(edge) == [enough]
    assert curve.choose(edge - 1) == [short]
    many = spend(menus(seed, count=12))
    for share in (0.2, 0.5, 0.9):
        chosen = many.choose(share * many.reachable)
        assert chosen is not None
        assert sum(o.saving for o in chosen) >= share * many.reachable


def test_of_equal_choices_the_one_that_saves_least_is_taken() -> None:
    """Doing nothing and a harmless option are equal where nothing has to be saved."""
    harmless, costly = option_of(1.0, 0.0), option_of(3.0, 1.0)
    curve = spend([Menu("a", "ffn", (costly, harmless))])
    assert curve.choose(0.0) == [Option((), 0.0, ())]
    assert curve.choose(0.5) == [harmless]
    assert curve.choose(2.0) == [costly]


@pytest.mark.parametrize("options", [(), (Option((NeuronsSpec(8),), 0.0, (1.0,)),)], ids=["none", "saving nothing"])
def test_menus_that_save_nothing_leave_nothing_to_choose(options: tuple[Option, ...]) -> None:
    curve = spend([Menu("a", "ffn", options)])
    assert curve.reachable == 0
    assert curve.choose(0.0) == [Option((), 0.0, ())]
    assert curve.choose(1e-9) is None


def test_losses_that_are_not_finite_are_never_chosen() -> None:
    fine = option_of(2.0, 1.0)
    for bad in (float("nan"), INFINITE):
        curve = spend([Menu("a", "ffn", (option_of(4.0, bad),)), Menu("b", "ffn", (fine,))])
        assert curve.choose(1.9) == [Option((), 0.0, ()), fine]
        assert curve.choose(2.1) is None


@pytest.mark.parametrize("target", [0.0, 1.0, -1.0, float("nan")])
def test_targets_are_fractions(target: float) -> None:
    with pytest.raises(UsageError, match="`target_macs` must be between 0 and 1"):
        Budget("macs", target)


def test_what_excludes_what() -> None:
    assert budget_of(None, None, None, None) is None
    assert budget_of(None, 0.5, None, ["neurons"]) == Budget("params", 0.5, ("neurons",))
    with pytest.raises(UsageError, match="one of `target_macs` and `target_latency`"):
        budget_of(0.5, None, 0.5, None)
    with pytest.raises(UsageError, match="`ops` narrows a budget"):
        budget_of(None, None, None, ["neurons"])
    with pytest.raises(UsageError, match="got 'prune'"):
        budget_of(0.5, None, None, ["prune"])
    budget = Budget("macs", 0.8)
    with pytest.raises(UsageError, match="leave out `ratio`"):
        check_budget(budget, (0.5, None), None, "images")
    with pytest.raises(UsageError, match="leave out `target_macs`"):
        check_budget(budget, (None, None), object(), "images")
    with pytest.raises(UsageError, match="needs images"):
        check_budget(budget, (None, None), None, None)
