"""Training of a reference checkpoint: batches in, steps out, and a state on disk to go on from."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from reference_images import augment, to_input
from reference_recipes import Recipe
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from vitcompact.errors import Interrupted, UsageError
from vitcompact.training.interrupt import StopRequest
from vitcompact.training.optimizer import Stepper
from vitcompact.training.state import State, load_state, pack_optimizer, save_state, unpack_optimizer
from vitcompact.utils.device import computes_bfloat16, device_of

_SCHEDULE = 10_000  # length of the learning rate's schedule in its own units: its position is a share of this


@dataclass
class Images:
    """uint8 `(n, 3, height, width)` and labels `(n,)`."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Images:
        return Images(self.images.to(device), self.labels.to(device))


class Trainer:
    """A model in training.

    Attributes:
        average: the moving average of its weights.
        epoch: epochs done.
        step: steps done.
        seconds: time spent up to the last saved state.
    """

    def __init__(self, recipe: Recipe, model: nn.Module, seed: int, max_minutes: float | None) -> None:
        self.recipe, self.seed = recipe, seed
        self.limit = None if max_minutes is None else 60 * max_minutes
        self.model = model.to(memory_format=torch.channels_last)
        self.average = ModelEmaV3(self.model, decay=recipe.ema_decay, use_warmup=True)
        self.optimizer = create_optimizer_v2(
            self.model, "adamw", lr=recipe.lr, weight_decay=recipe.weight_decay, layer_decay=recipe.layer_decay
        )
        self._stepper = Stepper(self.model, self._loss, self.optimizer, self.average, recipe.clip_grad, seed)
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=_SCHEDULE,
            lr_min=recipe.lr / 100,
            warmup_t=round(recipe.warmup * _SCHEDULE),
            warmup_lr_init=recipe.lr / 100,
            t_in_epochs=False,
        )
        self.epoch, self.step, self.seconds = 0, 0, 0.0
        self._size = recipe.input_size
        self._began = time.monotonic()
        self.device = device_of(model)
        self.amp = torch.bfloat16 if computes_bfloat16(self.device) else None

    def elapsed(self) -> float:
        """Seconds spent, those before a resume included."""
        return self.seconds + time.monotonic() - self._began

    def progress(self, total_steps: int) -> float:
        """Share of the schedule that is done: of the steps, or of the time where that is further."""
        done = self.step / total_steps
        return min(1.0, done if self.limit is None else max(done, self.elapsed() / self.limit))

    def train_epoch(self, data: Images, stop: StopRequest) -> float:
        """One pass over the images in an order given by the seed and the epoch; returns the mean loss.

        Raises:
            Interrupted: asked to stop; this epoch's steps are lost.
            DivergedError: the loss was not finite for several steps in a row.
        """
        generator = torch.Generator().manual_seed(1000 * self.seed + self.epoch)
        size = self.recipe.batch_size
        batches = torch.randperm(len(data.labels), generator=generator).split(size)
        batches = [batch for batch in batches if len(batch) == size] or list(batches)
        losses = []
        self.model.train()
        for batch in batches:
            progress = self.progress(self.recipe.epochs * len(batches))
            if progress >= 1.0:
                break
            if stop.requested:
                raise Interrupted(f"stopped in epoch {self.epoch + 1}; --resume auto goes on after epoch {self.epoch}")
            losses.append(self._train_batch(data, batch, generator, progress))
        self.epoch += 1
        finite = [loss for loss in losses if loss is not None]
        return sum(finite) / len(finite) if finite else float("nan")

    def _train_batch(self, data: Images, batch: Tensor, generator: torch.Generator, progress: float) -> float | None:
        recipe = self.recipe
        self.schedule.step_update(progress * _SCHEDULE)
        self._size = recipe.size_at(progress)
        fill = tuple(round(255 * value) for value in recipe.mean)
        batch = batch.to(self.device)
        images = augment(data.images[batch], generator, recipe.shift, recipe.cutout, fill)
        loss = self._stepper.step(self.step, images, data.labels[batch])
        self.step += 1
        return loss

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self._forward(self.model, images, self._size)
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing)

    def _forward(self, model: nn.Module, images: Tensor, size: int) -> Tensor:
        inputs = to_input(images, size, self.recipe.mean, self.recipe.std, self.recipe.interpolation)
        with torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None):
            logits: Tensor = model(inputs)
        return logits

    @torch.inference_mode()
    def top1(self, data: Images, size: int) -> float:
        """Percent correct of the moving average on images of `size` pixels."""
        correct = 0
        for batch in torch.arange(len(data.labels), device=self.device).split(self.recipe.batch_size):
            logits = self._forward(self.average.module, data.images[batch], size)
            correct += int((logits.argmax(dim=1) == data.labels[batch]).sum())
        return 100 * correct / len(data.labels)

    def save(self, path: Path, identity: dict[str, Any]) -> None:
        """Everything that the next epoch needs, in one file; `identity` is what a resumed run must agree on."""
        state = State(values={"identity": identity, "epoch": self.epoch, "step": self.step, "seconds": self.elapsed()})
        state.put("model", self.model.state_dict())
        state.put("average", self.average.module.state_dict())
        pack_optimizer(self.optimizer, state)
        save_state(state, path)

    def restore(self, path: Path, identity: dict[str, Any]) -> None:
        """Go on from what `save` wrote.

        Raises:
            CheckpointError: the file is damaged.
            UsageError: it is of a run with other options.
        """
        state = load_state(path)
        if state.values.get("identity") != json.loads(json.dumps(identity)):
            raise UsageError(f"{path} is the state of a run with other options; use the same, or delete it")
        self.model.load_state_dict(state.take("model"))
        self.average.module.load_state_dict(state.take("average"))
        unpack_optimizer(self.optimizer, state)
        self.epoch, self.step, self.seconds = (state.values[key] for key in ("epoch", "step", "seconds"))
        self._began = time.monotonic()
