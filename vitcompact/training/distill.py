"""One forward pass of teacher and student on the same images, and the loss between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitcompact.errors import DataError, UsageError
from vitcompact.models.forward import autocast, features, num_classes
from vitcompact.training.capture import BlockOutputs
from vitcompact.training.losses import block_loss, feature_loss, label_loss, logit_loss
from vitcompact.training.options import TrainOptions
from vitcompact.training.unchanged import first_changed_block, stop_gradients_before


@dataclass(frozen=True)
class Outputs:
    """What is compared: logits (batch, classes), or pooled features and tokens of a model without a head."""

    logits: Tensor | None
    features: tuple[Tensor, Tensor | None] | None
    blocks: list[Tensor]


class Distiller:
    """The loss of a student on a batch of images; the teacher runs without gradients, under the same precision.

    Both models are called as they are: either may be wrapped, as long as its blocks keep their names. Gradients end
    where the student begins to differ: what comes before is exact, and random steps of a patch embedding, whose inputs
    are all alike, cost more than those of all matrices of any other kind (docs/results.md).

    Args:
        student: the model in training.
        teacher: the original, in evaluation mode.
        blocks: module paths of the blocks whose outputs are compared.
        options: weights and temperature.
        amp_dtype: automatic mixed precision of both forward passes; None for none.

    Raises:
        UsageError: the two do not match.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        blocks: Sequence[str],
        options: TrainOptions,
        amp_dtype: torch.dtype | None,
    ) -> None:
        classes = num_classes(student), num_classes(teacher)
        if classes[0] != classes[1]:
            raise UsageError(f"the model has {classes[0]} outputs and its original {classes[1]}: not the same task")
        if options.labels and not classes[0]:
            raise UsageError("`labels` needs a model with a head; this one gives features only")
        self._has_head = classes[0] > 0
        self._student, self._teacher = student, teacher
        self._channels_last = getattr(teacher, "output_fmt", "NCHW") == "NHWC"
        self._options, self._amp_dtype = options, amp_dtype
        names = tuple(blocks) if options.block_weight else ()
        default = 0.0 if names else 1.0
        self._logit_weight = default if options.logit_weight is None else options.logit_weight
        if not self._has_head and not names and not options.feature_weight:
            raise UsageError("the losses on features and on block outputs are both off: there is nothing to learn from")
        first = first_changed_block(student, teacher, blocks)
        if names and first is not None:
            names = names[names.index(first) :]
        self._taps = BlockOutputs(student, names), BlockOutputs(teacher, names)
        self._stop = None if first is None else stop_gradients_before(student, first)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The weighted sum of all losses, a float32 scalar with gradients.

        Args:
            images: (batch, channels, height, width) on the models' device.
            labels: int64 (batch,); looked at with `options.labels` only.

        Raises:
            DataError: labels are wanted and no image has one.
        """
        with torch.no_grad():
            teacher = self._forward(self._teacher, self._taps[1], images)
        student = self._forward(self._student, self._taps[0], images)
        options = self._options
        total = torch.zeros((), device=images.device)
        if self._logit_weight and student.logits is not None and teacher.logits is not None:
            total = total + self._logit_weight * logit_loss(student.logits, teacher.logits, options.temperature)
        if options.feature_weight and student.features is not None and teacher.features is not None:
            total = total + options.feature_weight * feature_loss(student.features, teacher.features)
        if student.blocks:
            _check_shapes(student.blocks, teacher.blocks)
            total = total + options.block_weight * block_loss(student.blocks, teacher.blocks, self._channels_last)
        if options.labels and student.logits is not None:
            if not bool((labels >= 0).any()):
                raise DataError("`labels` was given, but the images have no labels: leave it out")
            total = total + options.label_weight * label_loss(student.logits, labels, options.smoothing)
        return total

    def close(self) -> None:
        """Take the hooks off both models."""
        for tap in self._taps:
            tap.close()
        if self._stop is not None:
            self._stop.remove()

    def _forward(self, model: nn.Module, tap: BlockOutputs, images: Tensor) -> Outputs:
        with autocast(images.device, self._amp_dtype):
            if not self._has_head:
                found, blocks = tap.record(lambda: features(model, images))
                return Outputs(None, found, blocks)
            logits, blocks = tap.record(lambda: model(images))
        return Outputs(logits, None, blocks)


def _check_shapes(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    for own, other in zip(student, teacher, strict=True):
        if own.shape != other.shape:
            raise UsageError(
                f"blocks of the model and of its original give {tuple(own.shape)} and {tuple(other.shape)}: "
                "the teacher must be the model that was converted"
            )
