"""The steps that make a model of a plan and bring it nearer to its original, each timed and judged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vitcompact.compaction.judge import Judge
from vitcompact.compaction.result import Step
from vitcompact.data import ImageBatches, first_images
from vitcompact.folding import fold
from vitcompact.plans.schema import Plan
from vitcompact.surgery import convert
from vitcompact.training import TrainOptions, finetune
from vitcompact.utils.progress import Progress

logger = logging.getLogger("vitcompact")

T = TypeVar("T")

RECONSTRUCT_STEPS = 200
RESERVED = 0.1
"""Share of the time left that training leaves to folding and to what it takes itself to begin and end."""
LEAST_TRAINING = 10.0
"""Seconds below which finetuning is not begun."""
FOLD_IMAGES = 64


@dataclass(frozen=True)
class Attempt:
    """A converted model in training form, and the points that it has lost."""

    model: nn.Module
    plan: Plan
    drop: float
    seconds: float


@dataclass
class Work:
    """One job's models, images and time.

    Attributes:
        source: the user's model; `original` is its frozen copy on `device`.
        training: what finetuning learns from.
        ends: when the time is up, by `clock`.
        reserved: seconds that timing takes in the end.
        steps: what was done so far.
    """

    source: nn.Module
    original: nn.Module
    images: ImageBatches
    training: Any
    judge: Judge
    device: str | torch.device
    seed: int
    progress: Progress
    clock: Callable[[], float]
    ends: float
    reserved: float = 0.0
    steps: list[Step] = field(default_factory=list)

    def step(self, name: str, run: Callable[[], T]) -> T:
        """Run a step and write down how long it took."""
        began = self.clock()
        result = run()
        self.steps.append(Step(name, self.clock() - began))
        return result

    @property
    def left(self) -> float:
        """Seconds that training may take."""
        return self.ends - self.clock() - self.reserved - 2 * self.judge.seconds

    def closed_form(self, plan: Plan) -> Attempt:
        """The model of a plan, solved by least squares."""
        return self._converted("convert", plan, 0)

    def improved(self, attempt: Attempt, allowed: float) -> Attempt:
        """Reconstruct, then finetune, while more than `allowed` points are lost and there is time."""
        if attempt.drop <= allowed:
            return attempt
        if self.left > 2 * (attempt.seconds + self._reconstruction()):
            again = self._converted("reconstruct", attempt.plan, RECONSTRUCT_STEPS)
            attempt = min(attempt, again, key=lambda each: each.drop)
        seconds = self.left * (1 - RESERVED)
        if attempt.drop <= allowed or seconds < LEAST_TRAINING:
            return attempt
        tuned = self._finetuned(attempt, seconds)
        return min(attempt, tuned, key=lambda each: each.drop)

    def folded(self, attempt: Attempt) -> nn.Module:
        """The attempt in its folded form, proven equal."""
        images: Tensor | None = None
        if attempt.plan.merge_tokens:
            images = next(iter(first_images(self.images, FOLD_IMAGES)))
        return fold(attempt.model, images=images, seed=self.seed)

    def _converted(self, name: str, plan: Plan, steps: int) -> Attempt:
        began = self.clock()
        model = convert(
            self.source,
            plan=plan,
            images=self.images,
            reconstruct=steps,
            seed=self.seed,
            device=self.device,
            progress=self.progress,
        )
        return self._judged(name, model, plan, began, f"{steps} steps a block" if steps else "closed form")

    def _finetuned(self, attempt: Attempt, seconds: float) -> Attempt:
        began = self.clock()
        options = TrainOptions(max_minutes=seconds / 60, seed=self.seed)
        result = finetune(
            attempt.model, self.source, self.training, options=options, device=self.device, progress=self.progress
        )
        return self._judged("finetune", result.model, attempt.plan, began, f"{result.steps} steps")

    def _judged(self, name: str, model: nn.Module, plan: Plan, began: float, note: str) -> Attempt:
        seconds = self.clock() - began
        drop = self.judge(model).drop
        self.steps.append(Step(name, seconds, drop, note))
        return Attempt(model, plan, drop, seconds)

    @torch.no_grad()
    def _reconstruction(self) -> float:
        """Seconds that reconstructing all blocks will take, about: forward and backward of some images a step."""
        batch = next(iter(self.images))[:4].to(self.device)
        self.original(batch)
        began = self.clock()
        self.original(batch)
        return 3 * RECONSTRUCT_STEPS * (self.clock() - began) * 1.5
