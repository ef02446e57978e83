"""Proof that two models compute the same: on their own weights and on perturbed ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vitcompact.errors import VerificationError
from vitcompact.models.forward import main_output, num_classes, tensors_in
from vitcompact.models.scores import Likeness, same_guess
from vitcompact.utils.copies import copy_of


@dataclass(frozen=True)
class FoldParity:
    """How far a folded model's outputs are from the model it came from, in float32 and eval mode.

    Attributes:
        max_abs_diff: largest absolute difference of an output.
        rel_diff: the same over the largest absolute output; the largest of both checks (own and perturbed weights).
        cast_max_abs_diff: largest absolute difference that storing the weights in `dtype` adds.
        agreement: share of equal arg max.
    """

    max_abs_diff: float
    rel_diff: float
    cast_max_abs_diff: float
    agreement: float


@dataclass(frozen=True)
class MergingEffect:
    """What merging tokens does to the outputs of a folded model.

    Attributes:
        merge_tokens: pairs of tokens merged in each block.
        agreement: share of equal arg max with and without merging (None without a head).
        cosine: mean cosine of the outputs with and without.
        num_samples: images compared on.
    """

    merge_tokens: tuple[int, ...]
    agreement: float | None
    cosine: float
    num_samples: int


@torch.no_grad()
def merging_effect(
    reference: nn.Module, merging: nn.Module, images: Tensor, schedule: tuple[int, ...]
) -> MergingEffect:
    """Compare a model that merges tokens with one that does not, on `images`."""
    likeness = Likeness()
    likeness.add(main_output(reference(images)), main_output(merging(images)))
    agreement = likeness.agreement if num_classes(reference) else None
    return MergingEffect(schedule, agreement, likeness.cosine, len(images))


@torch.no_grad()
def compare(reference: nn.Module, other: nn.Module, images: Tensor) -> tuple[float, float, float]:
    """Largest absolute difference, the same relative to the largest output, and agreement, on `images`.

    Raises:
        VerificationError: outputs that are not finite.
    """
    outputs = reference(images), other(images)
    guesses = [main_output(output).float().flatten(1) for output in outputs]
    first, second = (torch.cat([tensor.flatten() for tensor in tensors_in(output)]) for output in outputs)
    if not (torch.isfinite(first).all() and torch.isfinite(second).all()):
        raise VerificationError("fold verification: the model's outputs are not finite")
    difference = float((first - second).abs().max())
    agreement = float(same_guess(*guesses).double().mean())
    return difference, difference / max(float(first.abs().max()), 1e-30), agreement


@torch.no_grad()
def perturbed(model: nn.Module, seed: int) -> nn.Module:
    """A copy whose every parameter and running statistic is moved, so that no branch is silent and no term zero.

    Wide matrices move less than vectors: noise that adds up over many inputs would only make every softmax hard.
    """
    moved = copy_of(model)
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    for parameter in moved.parameters():
        spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
        inputs = torch.atleast_1d(parameter)[:1].numel()
        parameter.add_(noise(parameter) * max(0.1 * spread, min(0.05, 0.5 * inputs**-0.5)))
    for module in moved.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.add_(noise(module.running_mean) * module.running_var.sqrt())
            module.running_var.mul_(noise(module.running_var).abs() + 0.5)
    return moved


def require(relative: float, tolerance: float, which: str) -> None:
    """Raise unless a relative difference is within tolerance.

    Raises:
        VerificationError: it is not.
    """
    if not relative <= tolerance:
        raise VerificationError(
            f"the folded model differs from the model it came from ({which}): relative difference {relative:.2e}, "
            f"allowed {tolerance:.0e}; nothing was written"
        )
