"""Spending a global budget: one option per layer for the least total loss increase (a multiple-choice knapsack)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from vitcompact.plans.specs import LayerKind, OperatorSpec

BINS = 4000
"""Steps into which the whole saving is divided; savings are rounded down to them, so that a target is never missed."""


@dataclass(frozen=True)
class Option:
    """One thing that can be done to a layer: its operators, what they save and the loss increase expected of them.

    `loss` is the expected squared change of the model's output, `losses` its split by operator; `saving` is in the
    budget's own unit (MACs, parameters or shares of the original's time).
    """

    operators: tuple[OperatorSpec, ...]
    saving: float
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Total loss increase."""
        return sum(self.losses)


@dataclass(frozen=True)
class Menu:
    """What can be done to one layer. Doing nothing is always possible and need not be listed."""

    name: str
    kind: LayerKind
    options: tuple[Option, ...]

    def pareto(self) -> tuple[Option, ...]:
        """Options that no other one beats in both saving and loss, by rising saving; the first does nothing."""
        return self._pareto

    @cached_property
    def _pareto(self) -> tuple[Option, ...]:
        best: list[Option] = []
        for option in sorted(self.options, key=lambda o: (-o.saving, o.loss)):
            if option.saving > 0 and (not best or option.loss < best[-1].loss):
                best.append(option)
        return (Option((), 0.0, ()), *reversed(best))

    def scaled(self, share: float) -> Menu:
        """The same choices where each saves so much of it, such as where the layer runs on a share of its tokens."""
        return replace(self, options=tuple(replace(o, saving=share * o.saving) for o in self.options))


@dataclass(frozen=True)
class Curve:
    """Least expected loss increase at every total saving: `loss[i]` at `saving[i]`."""

    menus: tuple[Menu, ...]
    saving: tuple[float, ...]
    loss: tuple[float, ...]
    _tables: tuple[tuple[int, ...], ...] = field(repr=False)
    _steps: tuple[tuple[int, ...], ...] = field(repr=False)

    @property
    def reachable(self) -> float:
        """The largest saving."""
        return sum(menu.pareto()[-1].saving for menu in self.menus)

    @property
    def most(self) -> float:
        """The largest saving for which there is a choice, in whole steps."""
        return max(total for total, loss in zip(self.saving, self.loss, strict=True) if loss < INFINITE)

    def choose(self, saving: float) -> list[Option] | None:
        """The best option of every menu for a total saving of at least `saving`, or None where it is out of reach."""
        start = next((i for i, total in enumerate(self.saving) if total >= saving and self.loss[i] < INFINITE), None)
        if start is None:
            return None
        left, chosen = start, []
        for menu, table, steps in reversed(list(zip(self.menus, self._tables, self._steps, strict=True))):
            index = table[left]
            chosen.append(menu.pareto()[index])
            left = max(left - steps[index], 0)
        return chosen[::-1]


INFINITE = float("inf")


def spend(menus: Sequence[Menu]) -> Curve:
    """The best choice at every total saving, by dynamic programming over the menus; of equal options, the first."""
    total = sum(menu.pareto()[-1].saving for menu in menus)
    unit = total / BINS if total else 1.0
    bins = torch.arange(BINS + 1, device="cpu")
    best = torch.full((BINS + 1,), INFINITE, dtype=torch.float64, device="cpu")
    best[0] = 0.0
    tables, all_steps = [], []
    for menu in menus:
        steps = [int(option.saving / unit) for option in menu.pareto()]
        # min(INFINITE, NaN) is INFINITE: a loss increase that is not a number is never the least.
        losses = [min(INFINITE, option.loss) for option in menu.pareto()]
        # [option, bin]: the least loss with that option, where the menus before save what it leaves of the bin.
        left = (bins - _column(steps, torch.int64)).clamp_(min=0)
        best, table = (best[left] + _column(losses, torch.float64)).min(dim=0)
        tables.append(tuple(table.tolist()))
        all_steps.append(tuple(steps))
    saving = tuple(i * unit for i in range(BINS + 1))
    return Curve(tuple(menus), saving, tuple(best.tolist()), tuple(tables), tuple(all_steps))


def _column(values: Sequence[float], dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype, device="cpu")[:, None]
