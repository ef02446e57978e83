"""Learning rate and number of steps, with and without a clock."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitcompact.errors import Interrupted
from vitcompact.training import FinetuneResult, TensorBatches, finetune
from vitcompact.training.keep import Keeper
from vitcompact.training.optimizer import make_optimizer
from vitcompact.training.schedule import LearningRate, StepPlan

from .helpers import StopAfter, options, same_weights


class FakeClock:
    """Advances by `pace(n)` seconds at the n-th reading of a batch, and not otherwise."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class TimedBatches(TensorBatches):
    """Every batch takes time on a fake clock."""

    def __init__(self, images: Tensor, clock: FakeClock, seconds: Callable[[int], float]) -> None:
        super().__init__(images, batch_size=8)
        self.clock, self.seconds = clock, seconds

    def batches(self, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for step, batch in enumerate(super().batches(start_step), start_step):
            self.clock.now += self.seconds(step)
            yield batch


def rates(plan: StepPlan, rate: LearningRate, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        rate.apply(plan)
        found.append(optimizer.param_groups[0]["lr"])
        plan.advance()
    return found


@pytest.mark.parametrize("sched", ["cosine", "poly", "tanh", "wsd"])
def test_rate_warms_up_and_ends_near_zero(sched: str, student: nn.Module) -> None:
    chosen = options(steps=50, lr=1e-3, branch_lr=1e-2, warmup_steps=5, sched=sched)
    optimizer = make_optimizer(student, chosen, {})
    plan = StepPlan.of(chosen, steps_per_epoch=10)
    found = rates(plan, LearningRate(optimizer, chosen), optimizer, 50)
    assert plan.finished
    assert found[0] == pytest.approx(2e-4)
    assert max(found) <= 1e-3
    assert max(found) > 9e-4
    assert found[-1] < 0.06e-3
    assert optimizer.param_groups[-1]["lr"] == pytest.approx(10 * found[-1])


def test_limits_in_steps_and_epochs_the_smaller_wins() -> None:
    assert StepPlan.of(options(steps=7), 10).total == 7
    assert StepPlan.of(options(steps=None, epochs=1.5), 10).total == 15
    assert StepPlan.of(options(steps=7, epochs=0.5), 10).total == 5
    timed = StepPlan.of(options(steps=7, max_minutes=1), 10)
    assert timed.total is None
    assert timed.limit == 7


def test_revised_plan_still_ends_at_rate_zero(student: nn.Module) -> None:
    chosen = options(steps=None, max_minutes=1.0)
    optimizer = make_optimizer(student, chosen, {})
    plan, rate = StepPlan.of(chosen, 10), LearningRate(optimizer, chosen)
    found = rates(plan, rate, optimizer, 6)
    plan.revise(34)
    found += rates(plan, rate, optimizer, 10)
    plan.revise(8)
    found += rates(plan, rate, optimizer, 8)
    assert plan.finished
    assert plan.step == 24
    assert found[-1] < 0.05 * max(found)
    assert all(later <= earlier for earlier, later in itertools.pairwise(found[6:]))


def test_time_limit_is_kept_and_used(student: nn.Module, teacher: nn.Module, images: Tensor) -> None:
    clock = FakeClock()
    stream = TimedBatches(images, clock, lambda step: 1.0)
    chosen = options(steps=None, max_minutes=0.5)
    result = finetune(student, teacher, stream, options=chosen, clock=clock)
    assert result.stopped_by == "max_minutes"
    assert 25 <= result.steps <= 28
    assert clock.now - 100 <= 30 + 8  # the statistics read eight batches again, for which a third was planned


def test_time_limit_when_the_machine_slows_down(student: nn.Module, teacher: nn.Module, images: Tensor) -> None:
    clock = FakeClock()
    stream = TimedBatches(images, clock, lambda step: 1.0 if step < 10 else 3.0)
    plain = options(steps=None, max_minutes=1.0)
    result = finetune(student, teacher, stream, options=plain, clock=clock)
    assert result.stopped_by == "max_minutes"
    assert 20 <= result.steps <= 27
    assert result.seconds <= 60 + 24


def test_step_limit_below_the_time_limit(student: nn.Module, teacher: nn.Module, images: Tensor) -> None:
    clock = FakeClock()
    stream = TimedBatches(images, clock, lambda step: 1.0)
    result = finetune(student, teacher, stream, options=options(steps=9, max_minutes=5), clock=clock)
    assert (result.steps, result.stopped_by) == (9, "steps")


def test_timed_run_resumes_by_its_recorded_plan(
    student: nn.Module, teacher: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    chosen = options(steps=None, max_minutes=0.3)

    def run(**kwargs: Any) -> FinetuneResult:
        clock = FakeClock()
        stream = TimedBatches(images, clock, lambda step: 1.0)
        return finetune(student, teacher, stream, options=chosen, clock=clock, **kwargs)

    whole = run(state_dir=tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(state_dir=tmp_path, progress=StopAfter(9))
    resumed = run(state_dir=tmp_path, resume="auto")
    assert resumed.steps == whole.steps
    assert same_weights(whole.model, resumed.model)


@pytest.mark.parametrize(("limit", "task"), [({"steps": 4}, "finetune"), ({"max_minutes": 0.5}, "finetune, seconds")])
def test_a_bar_counts_one_thing(
    limit: dict[str, Any], task: str, student: nn.Module, teacher: nn.Module, images: Tensor
) -> None:
    """Steps of the total, or seconds of the limit with the step as a note; the bar itself tells what is left."""
    shown: list[tuple[str, float | None]] = []
    notes: list[str] = []

    class Bar(StopAfter):
        def start(self, task: str, total: float | None) -> None:
            shown.append((task, total))

        def advance(self, amount: float = 1.0, note: str = "") -> None:
            notes.append(note)

    clock = FakeClock()
    stream = TimedBatches(images, clock, lambda step: 5.0)
    finetune(student, teacher, stream, options=options(**{"steps": None, **limit}), clock=clock, progress=Bar(0))
    assert shown[0][0] == task
    assert shown[0][1] == (4 if task == "finetune" else pytest.approx(30, abs=5))
    assert all(("step" in note) == ("seconds" in task) and "left" not in note for note in notes)
    ends = ["epoch 1 of 2 ends in 10 s", "epoch 1 of 2 ends in 5 s", "epoch 1 of 2 ends in 0 s"]
    assert "steps" not in limit or [note.rpartition(", ")[2] for note in notes[:3]] == ends
    assert all(re.fullmatch(r"(step \d+, )?loss \d.*, rate \S+e-\d+, 1.6 images/s, epoch .*", note) for note in notes)


def test_evaluations_come_after_so_many_steps_each(
    student: nn.Module, teacher: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes before the first step is the model as it was: not one that training has found."""
    offered: list[int] = []
    monkeypatch.setattr(Keeper, "offer", lambda self, model, value, step: offered.append(step))
    clock = FakeClock()
    stream = TimedBatches(images, clock, lambda step: 1.0)
    evaluation = [(images, torch.arange(len(images)) % 5)]
    finetune(student, teacher, stream, options=options(steps=7, eval_every=3), evaluation=evaluation, clock=clock)
    assert offered == [3, 6]
