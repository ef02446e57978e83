"""A training state that others may have changed: refused with what to do, or exactly what was saved."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitcompact.errors import CheckpointError
from vitcompact.training import TensorBatches, finetune
from vitcompact.training.keep import Keeper
from vitcompact.training.optimizer import Stepper
from vitcompact.training.saved import saved_run
from vitcompact.training.schedule import StepPlan
from vitcompact.training.state import (
    BEST_NAME,
    STATE_NAME,
    State,
    is_state,
    load_state,
    pack_optimizer,
    save_state,
    unpack_optimizer,
)

from .helpers import options

VALUES: dict[str, Any] = {
    **{"version": 1, "identity": {"options": {}, "amp": False}, "seconds": 3.5, "skipped": {"in_a_row": 0, "all": 1}},
    **{"plan": {"total": 8, "limit": 8, "step": 4, "span": 8, "position": 4.0, "revisions": 0}},
    "notes": {"before": {"top1": 50.0, "agreement": None, "cosine": None}, "evaluation_seconds": 0.5},
    "optimizer": {"numbers": {"0": {"step": 4}}, "groups": [{"lr": 0.1}]},
}
WRONG: tuple[Any, ...] = (None, True, 7.5, -1, 2.5, "x", [], [[]], {}, {"x": []}, 10**30, float("nan"), float("inf"))


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, value in document.items() if isinstance(document, dict) else ():
        yield (*path, key)
        yield from places(value, (*path, key))


FREE = {"identity", "numbers", "groups"}
"""What is in these is compared with the run itself, or with the optimizer."""


def test_wrong_values_are_refused() -> None:
    saved = saved_run(State({}, VALUES))
    assert (saved.plan, saved.seconds, saved.skipped.all) == (StepPlan(8, 8, 4, 8, 4.0), 3.5, 1)
    accepted = []
    for place in places(VALUES):
        for value in WRONG:
            if FREE & {*place[:-1]} or (place[-1] in FREE and value in ({}, {"x": []})):
                continue
            changed = copy.deepcopy(VALUES)
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = value
            try:
                saved_run(State({}, changed))
            except CheckpointError:
                continue
            accepted.append((place, value))
    assert {place for place, _ in accepted} <= {
        *((("plan", name)) for name in ("total", "limit", "position")),
        *(("notes", "before", name) for name in ("top1", "agreement", "cosine")),
        *(("seconds",), ("notes",), ("notes", "before"), ("notes", "evaluation_seconds"), ("optimizer",)),
        *(("optimizer", "groups"), ("version",)),
    }
    for changed in (
        {**VALUES, "seconds": -1.0},
        {**VALUES, "more": 1},
        {k: v for k, v in VALUES.items() if k != "plan"},
    ):
        with pytest.raises(CheckpointError, match="the training state is damaged"):
            saved_run(State({}, changed))


def _trained(opt: str) -> tuple[torch.optim.Optimizer, State]:
    layer = nn.Linear(3, 5)
    kind: Any = getattr(torch.optim, opt)
    optimizer: torch.optim.Optimizer = kind(layer.parameters(), lr=0.1)
    layer(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    state = State()
    pack_optimizer(optimizer, state)
    state.values = json.loads(json.dumps(state.values))
    return kind(nn.Linear(3, 5).parameters(), lr=0.1), state


def test_states_of_optimizers() -> None:
    """Tensors of other shapes, of parameters that there are not, settings of other types; an honest one is taken."""
    optimizer, state = _trained("AdamW")
    unpack_optimizer(optimizer, state)
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], state.tensors["optimizer.0.exp_avg"])

    def spoilt(change: Any) -> State:
        copied = copy.deepcopy(state)
        change(copied)
        return copied

    changes: list[Any] = [
        lambda s: s.tensors.update({"optimizer.0.exp_avg": torch.ones(7)}),
        lambda s: s.tensors.update({"optimizer.0.exp_avg": torch.ones(3, 5)}),
        lambda s: s.tensors.update({"optimizer.99.exp_avg": torch.ones(1)}),
        lambda s: s.tensors.update({"optimizer.x.exp_avg": torch.ones(1)}),
        lambda s: s.values["optimizer"]["groups"][0].update(lr="0.1"),
        lambda s: s.values["optimizer"]["groups"][0].update(lr=float("inf")),
        lambda s: s.values["optimizer"]["groups"][0].update(betas=[0.9]),
        lambda s: s.values["optimizer"]["groups"][0].update(amsgrad=1.5),
        lambda s: s.values["optimizer"].update(groups=[]),
    ]
    for change in changes:
        with pytest.raises((ValueError, KeyError, IndexError, TypeError)):
            unpack_optimizer(_trained("AdamW")[0], spoilt(change))


def test_the_plan_is_that_of_the_run(student: nn.Module, teacher: nn.Module, images: Tensor, tmp_path: Path) -> None:
    """A state that claims a billion steps, or more than were asked for, is not followed."""
    stream, chosen = TensorBatches(images, batch_size=8), options(steps=2, save_minutes=1e-9)
    finetune(student, teacher, stream, options=chosen, state_dir=tmp_path)
    path = tmp_path / STATE_NAME
    honest = load_state(path)
    for plan in ({"total": 10**9, "limit": 10**9, "span": 10**9}, {"total": 4, "limit": 4}, {"total": None}):
        values = {**honest.values, "plan": {**honest.values["plan"], **plan}}
        save_state(State(honest.tensors, {key: value for key, value in values.items() if key != "version"}), path)
        with pytest.raises(CheckpointError, match="is damaged"):
            finetune(student, teacher, stream, options=chosen, state_dir=tmp_path, resume="auto")


class _Stub:
    """As much of a stepper as is saved."""

    def __init__(self) -> None:
        self.student = nn.Linear(2, 2)
        self.ema = None
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.1)
        self.bad_in_a_row, self.bad_steps = 1, 2


def test_the_best_weights_come_back(tmp_path: Path) -> None:
    """They are those seen before the interruption, with their value and step, and beaten by better ones only."""
    stub: Any = _Stub()
    stepper: Stepper = stub
    keeper, seen = Keeper(tmp_path, {"it": 1}), nn.Linear(2, 2)
    keeper.offer(seen, 71.5, step=3)
    assert keeper.save(stepper, StepPlan(8, 8, 4, 8, 4.0), 12.5)
    again = Keeper(tmp_path, {"it": 1})
    other: Any = _Stub()
    plan, seconds = again.restore(load_state(tmp_path / STATE_NAME), tmp_path, other)
    assert (plan, seconds) == (StepPlan(8, 8, 4, 8, 4.0), 12.5)
    assert (other.bad_in_a_row, other.bad_steps) == (1, 2)
    assert torch.equal(other.student.weight, stub.student.weight)
    assert again.best is not None
    assert (again.best.value, again.best.step) == (71.5, 3)
    _assert_same(again.best.weights, seen)
    again.offer(nn.Linear(2, 2), 71.5, step=5)
    _assert_same(again.best.weights, seen)
    better = nn.Linear(2, 2)
    again.offer(better, 71.6, step=6)
    _assert_same(again.best.weights, better)
    save_state(State({"weight": torch.ones(9, 9)}, {"value": 1.0, "step": 1}), tmp_path / BEST_NAME)
    with pytest.raises(CheckpointError, match="another model"):
        Keeper(tmp_path, {}).restore(load_state(tmp_path / STATE_NAME), tmp_path, other)


def _assert_same(weights: dict[str, Tensor], model: nn.Module) -> None:
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 43)


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, Path.mkdir, huge, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path)],
    ids=["pipe", "folder", "huge", "device", "link"],
)
def test_what_is_no_file_is_no_state(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / STATE_NAME)
    assert not is_state(tmp_path / STATE_NAME)
    with pytest.raises(CheckpointError, match="delete it"):
        load_state(tmp_path / STATE_NAME)
