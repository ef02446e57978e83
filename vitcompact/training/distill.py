"""The loss between a student and its teacher: what is compared, how, and from which block on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.hooks import RemovableHandle

from vitcompact.errors import DataError, NothingToCompactError, UsageError
from vitcompact.models import inspect
from vitcompact.models.forward import autocast, features, num_classes
from vitcompact.training.options import TrainOptions
from vitcompact.training.sharded import whole
from vitcompact.training.share import Weights, labelled
from vitcompact.training.teacher_cache import TeacherCache
from vitcompact.utils.device import computes_bfloat16
from vitcompact.utils.hooks import recorded_outputs

ROUNDING = 1e-2
"""Relative distance up to which two tensors are the same but for the number format they were saved in."""


def logit_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T^2 KL(teacher || student)` of the softened distributions, mean over the batch; logits are (batch, classes).

    Source: Hinton et al., arXiv 1503.02531; `T^2` keeps the size of the gradient independent of the temperature.
    timm's `LogitDistillationTask` computes the same but always adds a loss on labels, which are not used here.
    """
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def relative_error(student: Tensor, teacher: Tensor, channel_dim: int = -1) -> Tensor:
    """Squared error of each vector over the squared norm of the teacher's, averaged over all vectors.

    Every token counts alike: the few tokens with enormous norms that large ViTs have (arXiv 2309.16588) would fill a
    plain squared error.
    """
    student, teacher = student.float(), teacher.float()
    size = teacher.square().sum(channel_dim)
    error = (student - teacher).square().sum(channel_dim)
    return (error / size.clamp_min(1e-12 + 1e-6 * size.mean())).mean()


def block_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], channels_last: bool = False) -> Tensor:
    """Mean `relative_error` of the blocks: tokens (batch, tokens, channels), or maps.

    Args:
        channels_last: maps are (batch, height, width, channels) and not (batch, channels, height, width).
    """
    map_dim = -1 if channels_last else 1
    errors = [relative_error(s, t, map_dim if t.ndim == 4 else -1) for s, t in zip(student, teacher, strict=True)]
    return torch.stack(errors).mean()


def feature_loss(student: tuple[Tensor, Tensor | None], teacher: tuple[Tensor, Tensor | None]) -> Tensor:
    """For models without a head: one minus the cosine of the pooled features, plus `relative_error` of the tokens.

    Pooled features are (batch, channels), tokens (batch, tokens, channels) or None.
    """
    pooled = (1 - F.cosine_similarity(student[0].float(), teacher[0].float(), dim=-1)).mean()
    if student[1] is None or teacher[1] is None:
        return pooled
    return pooled + relative_error(student[1], teacher[1])


def label_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy over the images that have a label, or shares of several; 0 where none has."""
    known = labelled(labels)
    if not bool(known.any()):
        return logits.float().sum() * 0
    return F.cross_entropy(logits.float()[known], labels[known], label_smoothing=smoothing)


def block_names(teacher: nn.Module) -> tuple[str, ...]:
    """Module paths of the teacher's residual blocks, which its student has too; none where they are not known."""
    try:
        return inspect(teacher).blocks
    except NothingToCompactError:
        return ()


def first_changed_block(student: nn.Module, teacher: nn.Module, blocks: Sequence[str]) -> str | None:
    """The first of `blocks` (module paths in forward order) that is not the teacher's.

    None where no block differs, where the student lacks one, and where something outside of the blocks differs: what
    comes before which block is not known then.
    """
    states = [model.state_dict() for model in (student, teacher)]
    prefixes = [f"{name}." for name in blocks]
    outside = [{name: x for name, x in state.items() if not name.startswith(tuple(prefixes))} for state in states]
    if not _same(*outside):
        return None
    for block, prefix in zip(blocks, prefixes, strict=True):
        mine, other = ({name: x for name, x in state.items() if name.startswith(prefix)} for state in states)
        if not _same(mine, other):
            return block if mine else None
    return None


def stop_gradients_before(model: nn.Module, block: str) -> RemovableHandle:
    """Backward passes end at the input of a block: parameters before it get no gradients, and cost no time."""
    return model.get_submodule(block).register_forward_pre_hook(_detached, prepend=True)


def _detached(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    x = args[0].detach()
    if isinstance(module, FSDPModule):
        x.requires_grad_()  # by the gradients of its inputs torch knows that those of a sharded block are complete
    x.__dict__.update(args[0].__dict__)  # what travels along with merged tokens
    return (x, *args[1:])


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    if first.keys() != second.keys():
        return False
    pairs = ((whole(tensor), whole(second[name])) for name, tensor in first.items())
    return all(
        one.shape == other.shape and bool((one.float() - other.float()).norm() <= ROUNDING * other.float().norm())
        for one, other in pairs
    )


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
        cache: keeps what the teacher gives; None for images that vary.

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
        cache: TeacherCache | None = None,
    ) -> None:
        self._cache = cache
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
        for model in (student, teacher):
            if missing := set(names) - {name for name, _ in model.named_modules()}:
                listed = ", ".join(name for name in names if name in missing)
                raise UsageError(f"the model and its original do not match: one has no block {listed}")
        self._names = names
        self._stop = None if first is None else stop_gradients_before(student, first)

    def loss(self, images: Tensor, labels: Tensor, weights: Weights | None = None) -> Tensor:
        """The weighted sum of all losses, a float32 scalar with gradients.

        Args:
            images: (batch, channels, height, width) on the models' device.
            labels: int64 (batch,), or shares (batch, classes); looked at with `options.labels` only.
            weights: what these images count of a batch of which they are a part; None for a whole one.

        Raises:
            DataError: labels are wanted and no image has one.
        """
        with torch.no_grad():
            teacher = self._taught(images)
        student = self._forward(self._student, images)
        options = self._options
        total = torch.zeros((), device=images.device)
        if self._logit_weight and student.logits is not None and teacher.logits is not None:
            total = total + self._logit_weight * logit_loss(student.logits, teacher.logits, options.temperature)
        if options.feature_weight and student.features is not None and teacher.features is not None:
            total = total + options.feature_weight * feature_loss(student.features, teacher.features)
        if student.blocks:
            _check_shapes(student.blocks, teacher.blocks)
            total = total + options.block_weight * block_loss(student.blocks, teacher.blocks, self._channels_last)
        if weights is not None:
            total = total * weights.images
        if options.labels and student.logits is not None:
            if weights is None and not bool(labelled(labels).any()):
                raise DataError("`labels` was given, but the images have no labels: leave it out")
            counted = options.label_weight * (1.0 if weights is None else weights.labelled)
            total = total + counted * label_loss(student.logits, labels, options.smoothing)
        return total

    def close(self) -> None:
        """Let gradients through the student again."""
        if self._stop is not None:
            self._stop.remove()

    def _taught(self, images: Tensor) -> Outputs:
        """What the teacher gives, of which a cache keeps what the losses compare."""
        if self._cache is None:
            return self._forward(self._teacher, images)
        pooled = self._options.feature_weight > 0 and not self._has_head

        def compute(images: Tensor) -> list[Tensor]:
            found = self._forward(self._teacher, images)
            heads = [found.logits] if self._logit_weight and found.logits is not None else []
            heads += [part for part in found.features or () if pooled and part is not None]
            return [*heads, *found.blocks]

        tensors = self._cache.outputs(images, compute)
        heads = tensors[: len(tensors) - len(self._names)]
        logits = heads[0] if heads and self._has_head else None
        features = (heads[0], heads[1] if len(heads) > 1 else None) if heads and pooled else None
        return Outputs(logits, features, tensors[len(heads) :])

    def _forward(self, model: nn.Module, images: Tensor) -> Outputs:
        # Hooks for this call alone: activation checkpointing runs the blocks again in the backward pass.
        with autocast(images.device, self._amp_dtype), recorded_outputs(model, self._names) as found:
            logits, tokens = (model(images), None) if self._has_head else (None, features(model, images))
        blocks = [found[name] for name in self._names]
        return Outputs(logits, tokens, [each[0] if isinstance(each, (tuple, list)) else each for each in blocks])


def _check_shapes(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    for own, other in zip(student, teacher, strict=True):
        if own.shape != other.shape:
            raise UsageError(
                f"blocks of the model and of its original give {tuple(own.shape)} and {tuple(other.shape)}: "
                "the teacher must be the model that was converted"
            )


def amp_dtype(options: TrainOptions, device: torch.device) -> torch.dtype | None:
    """The type of automatic mixed precision, or None; master weights stay float32 either way."""
    wanted = computes_bfloat16(device) if options.amp is None else options.amp
    return torch.bfloat16 if wanted else None
