"""The training loop: batches in, steps out, until a limit is reached or somebody interrupts."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import NoReturn

import torch
from torch import nn

from vitcompact.data.prefetch import sent_ahead
from vitcompact.errors import Interrupted
from vitcompact.training.course import Course
from vitcompact.training.held_out import HeldOut, Scores
from vitcompact.training.interrupt import StopRequest
from vitcompact.training.keep import Keeper
from vitcompact.training.optimizer import Stepper
from vitcompact.training.options import TrainOptions
from vitcompact.training.schedule import LearningRate, StepPlan
from vitcompact.training.stream import TrainingStream
from vitcompact.utils.numbers import duration
from vitcompact.utils.processes import ALONE, Processes
from vitcompact.utils.progress import Progress

Clock = Callable[[], float]
_SAVE_SHARE = 20  # a save that takes long happens rarely: at most a twentieth of the time


class Stopwatch:
    """Seconds spent on a run, those before a resume included."""

    def __init__(self, clock: Clock = time.monotonic, spent: float = 0.0) -> None:
        self._clock, self._start = clock, clock() - spent

    @property
    def seconds(self) -> float:
        return self._clock() - self._start


@dataclass
class Loop:
    """Everything one run consists of.

    Attributes:
        plan: how many steps, and how many are done.
        reserve: gives the seconds to leave for what comes after the last step.
        held_out: evaluation images, or None.
        amp_dtype: precision of evaluations during training.
        course: is told of every step and evaluation.
        processes: those that train together. What depends on a clock or a signal is decided by the first for all.
    """

    stepper: Stepper
    plan: StepPlan
    rate: LearningRate
    stream: TrainingStream
    device: torch.device
    options: TrainOptions
    watch: Stopwatch
    keeper: Keeper
    stop: StopRequest
    progress: Progress
    reserve: Callable[[float], float]
    held_out: HeldOut | None
    amp_dtype: torch.dtype | None
    processes: Processes = ALONE
    course: Course = field(default_factory=lambda: Course(None, 1, 1))

    def run(self) -> None:
        """Train until the plan is done.

        Raises:
            Interrupted: asked to stop; the state was saved where there is a folder for it.
            DivergedError: the loss was not finite for several steps in a row.
        """
        self._pace = _Pace(self.watch)
        self._saved, self._save_cost, self._evaluated = self.watch.seconds, 0.0, 0.0
        self._loss: float | None = None
        self._took, self._stepped = 0.0, self.watch.seconds
        self._start_progress()
        if not self.plan.finished:
            with (
                closing(self.stream.batches(self.plan.step)) as batches,  # type: ignore[type-var]
                closing(sent_ahead(batches, self.device)) as sent,
            ):
                for images, labels in sent:
                    self._look_back()
                    self._one_step(images, labels)
                    if self.plan.finished:
                        break
        self.progress.finish()
        self._save()

    @property
    def averaged(self) -> nn.Module:
        """The model that counts: the moving average where there is one."""
        module: nn.Module = self.stepper.ema.module if self.stepper.ema is not None else self.stepper.student
        return module

    def _one_step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.rate.apply(self.plan)
        loss = self.stepper.step(self.plan.step, images, labels)
        self.plan.advance()
        self._pace.tick(self.plan.step)
        self._keep_to_time()
        self._report(loss)
        if self.processes.sums(self.stop.requested)[0]:
            self._interrupt()
        self._save_sometimes()

    def _keep_to_time(self) -> None:
        """Plan and revise the number of steps of a run with a time limit, and end it when the time is up."""
        if self.options.max_minutes is None:
            return
        if self.processes.first:
            self._plan_by_clock(self.options.max_minutes)
        if self.processes.several:
            self.plan.follow(self.processes.agreed(lambda: asdict(self.plan)))

    def _plan_by_clock(self, minutes: float) -> None:
        pace = self._pace.seconds
        left = 60 * minutes - self.watch.seconds - self.reserve(pace)
        if self.plan.revision_due:
            self.plan.revise(left / max(pace, 1e-9))
            self._pace.restart(self.plan.step)
            self.plan.note_revision()
        if left < pace / 2:
            self.plan.total = self.plan.step

    def _look_back(self) -> None:
        """At what an epoch or `eval_every` steps came to.

        Ahead of the step that comes next, so that a run interrupted here evaluates again when it goes on.
        """
        step, epoch = self.plan.step, self.stream.steps_per_epoch
        if step == 0:
            return
        scores = self._evaluated_now() if step % (self.options.eval_every or epoch) == 0 else None
        if scores is not None or step % epoch == 0:
            best = self.keeper.best
            self.course.row(step, scores, None if best is None else best.step, self.watch.seconds)

    def _evaluated_now(self) -> Scores | None:
        """Scores of the weights so far, of which the best are kept; None where there are no images or no time."""
        if self.held_out is None:
            return None
        before = self.watch.seconds
        if not self.processes.agreed(lambda: self._may_evaluate(before)):
            return None
        self.progress.finish()
        try:
            scores = self.held_out.score(self.averaged, self.amp_dtype, "evaluate")
        except Interrupted:
            self._interrupt()
        self.keeper.offer(self.averaged, scores.value, self.plan.step)
        spent = self.watch.seconds - before
        self._evaluated += spent
        self._stepped += spent
        self._start_progress()
        return scores

    def _may_evaluate(self, seconds: float) -> bool:
        """Whether evaluations, with one more, stay within their share of so many seconds."""
        cost = self.keeper.notes.get("evaluation_seconds", 0.0) / 2  # that one ran the teacher too
        share = self.options.eval_share
        return share == 1 or self._evaluated + cost <= share * seconds

    def _save_sometimes(self) -> None:
        before = self.watch.seconds
        if not self.processes.agreed(lambda: self.keeper.folder is not None and self._save_due(before)):
            return
        self._save()
        self._saved = self._stepped = self.watch.seconds
        self._save_cost = self._saved - before

    def _save_due(self, seconds: float) -> bool:
        """By steps where an interval is given, else by time, of which saves take a small share."""
        if (interval := self.options.save_interval) is not None:
            return self.plan.step % interval == 0
        return seconds - self._saved >= max(60 * self.options.save_minutes, _SAVE_SHARE * self._save_cost)

    def _save(self) -> bool:
        """Save the state, behind what was told of the way to it; in all processes, of which the first writes."""
        self.course.sync()
        return self.keeper.save(self.stepper, self.plan, self.watch.seconds)

    def _interrupt(self) -> NoReturn:
        done = f"interrupted after step {self.plan.step}" + (f" of {self.plan.total}" if self.plan.total else "")
        saved = self._save()
        if folder := self.processes.agreed(lambda: str(self.keeper.folder) if saved else ""):
            raise Interrupted(f"{done}; `resume='auto'` continues from {folder}")
        raise Interrupted(f"{done}; nothing was saved")

    def _start_progress(self) -> None:
        """A run with a time limit counts seconds, and says so; any other counts steps."""
        self._shown = self.watch.seconds
        if self.options.max_minutes is not None:
            self.progress.start("finetune, seconds", max(0.0, 60 * self.options.max_minutes - self._shown))
        else:
            self.progress.start("finetune", float((self.plan.total or 0) - self.plan.step))

    def _report(self, loss: float | None) -> None:
        now, lr = self.watch.seconds, self.rate.value
        took, amount = now - self._stepped, now - self._shown
        self._stepped = self._shown = now
        self._took = 0.9 * self._took + 0.1 * took if self._took else took
        if loss is not None:
            self._loss = loss if self._loss is None else 0.9 * self._loss + 0.1 * loss
        self.course.step(self.plan.step, loss, lr, took, now)
        self.progress.advance(amount if self.options.max_minutes is not None else 1.0, self._note(lr))

    def _note(self, lr: float) -> str:
        """Where the run stands: loss and speed of the last ten steps or so, and what is left of the epoch."""
        step, epoch, total = self.plan.step, self.stream.steps_per_epoch, self.plan.total
        notes = [f"step {step}"] if self.options.max_minutes is not None else []
        notes += [f"loss {self._loss:.4f}"] if self._loss is not None else []
        notes.append(f"rate {lr:.1e}")
        notes += [f"{self.stream.batch_size / self._took:.3g} images/s"] if self._took > 0 else []
        done, of = -(-step // epoch), "" if total is None else f" of {-(-total // epoch)}"
        end = done * epoch if total is None else min(done * epoch, total)
        notes.append(f"epoch {done}{of} ends in {duration(self._took * (end - step))}")
        return ", ".join(notes)


class _Pace:
    """Seconds per step since the last restart. The very first step is slower than the rest and does not count."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch, self._begin = watch, watch.seconds
        self._since: tuple[float, int] | None = None
        self.seconds = 0.0

    def tick(self, step: int) -> None:
        """`step` steps are done."""
        now = self._watch.seconds
        if self._since is None:
            self.seconds, self._since = now - self._begin, (now, step)
        elif step > self._since[1]:
            self.seconds = (now - self._since[0]) / (step - self._since[1])

    def restart(self, step: int) -> None:
        """Measure anew from here on."""
        self._since = self._watch.seconds, step
