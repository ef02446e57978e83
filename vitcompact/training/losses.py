"""What the student is judged by: distances to the teacher's logits, features and block outputs, in float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


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
    """Cross-entropy over the images that have a label; 0 where none has."""
    labelled = labels >= 0
    if not bool(labelled.any()):
        return logits.float().sum() * 0
    return F.cross_entropy(logits.float()[labelled], labels[labelled], label_smoothing=smoothing)
