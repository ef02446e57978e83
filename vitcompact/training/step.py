"""One optimisation step: loss, gradients, optimizer, moving average; a step that is not finite changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from vitcompact.data.sampling import generator
from vitcompact.training.errors import DivergedError

MAX_BAD_STEPS = 5
"""Steps in a row whose loss or gradients may be not finite before training gives up."""


class Stepper:
    """Applies optimisation steps to `student`, and keeps its moving average.

    Args:
        student: the model in training.
        loss: gives the loss of a batch of images and labels, on the models' device.
        optimizer: over the student's parameters.
        ema: the moving average, or None.
        clip_grad: largest gradient norm, or None.
        seed: with the number of the step it decides all that is random in it.
    """

    def __init__(
        self,
        student: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        ema: ModelEmaV3 | None,
        clip_grad: float | None,
        seed: int,
    ) -> None:
        self.student, self.optimizer, self.ema = student, optimizer, ema
        self._loss = loss
        self._max_norm = math.inf if clip_grad is None else clip_grad
        self._seed = seed
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.bad_in_a_row = 0
        self.bad_steps = 0

    def step(self, number: int, images: Tensor, labels: Tensor) -> float | None:
        """Step `number` (from 0) on one batch; its loss, or None where it was not finite and the step was skipped.

        Raises:
            DivergedError: too many steps in a row were skipped.
        """
        torch.manual_seed(generator("step", self._seed, number).getrandbits(63))
        buffers = [(buffer, buffer.clone()) for buffer in self.student.buffers()]
        loss = self._loss(images, labels)
        value = float(loss.detach())
        norm = math.nan
        if math.isfinite(value):
            loss.backward()
            norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._max_norm))
        if not math.isfinite(norm):
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            self._count_bad(number)
            return None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.student, step=number + 1)
        self.bad_in_a_row = 0
        return value

    def _count_bad(self, number: int) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.bad_steps += 1
        self.bad_in_a_row += 1
        if self.bad_in_a_row >= MAX_BAD_STEPS:
            raise DivergedError(
                f"the loss was not finite for {self.bad_in_a_row} steps in a row, up to step {number + 1}: "
                "train with a lower `lr`, and check the images and the converted model"
            )
