"""What the methods share: calibration images, the loss that importance scores differentiate, and hitting a target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcompact.analysis import count
from vitcompact.calibration.output_sensitivity import OutputSensitivity
from vitcompact.data import from_tensor, resolve_input
from vitcompact.options.selection import Keep

TOLERANCE = 0.04
"""Largest distance of the MACs from the target, as a share of the original's."""


class UnreachableError(Exception):
    """A method has no setting near the target."""


@dataclass(frozen=True)
class Calibration:
    """The images that every method gets, in one order.

    Attributes:
        images: normalised `(n, channels, height, width)`.
        labels: int64 `(n,)`, -1 for none. Only importance scores that need a loss look at them; ours never do.
        seed: of anything random.
        reconstruct_steps: Adam steps a block of the `reconstruct` methods.
        batch_size: images a batch.
        measured: what planning has measured of the model's layers; it serves every target.
    """

    images: Tensor
    labels: Tensor
    seed: int = 0
    reconstruct_steps: int = 300
    batch_size: int = 64
    measured: dict[Any, Any] = field(default_factory=dict, compare=False)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels, batch by batch."""
        yield from zip(self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True)


def known_of(original: nn.Module, calibration: Calibration, keep: Keep = "both") -> OutputSensitivity:
    """What errors do to the output of a model, measured once for all methods and targets."""
    measured, key = calibration.measured, ("known", keep)
    if key not in measured:
        measured[key] = OutputSensitivity(original, from_tensor(calibration.images), keep)
    found: OutputSensitivity = measured[key]
    return found


def task_loss(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Summed over images: cross-entropy with the labels, or for a model without a head a random projection of features.

    The squared derivative of the projection, averaged over directions, is the squared norm of the features' Jacobian:
    what the Fisher information is to a classifier.
    """
    if int(getattr(model, "num_classes", 0) or 0) > 0:
        return F.cross_entropy(model(images), labels, reduction="sum")
    tokens = F.normalize(model.forward_features(images), dim=-1)  # type: ignore[operator]
    direction = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(seed)).to(tokens)
    return (tokens * direction).sum()


def macs_of(model: nn.Module) -> int:
    """Multiply-accumulates an image of the folded form, at the model's own size."""
    return count(model, resolve_input(model).input_size).macs


def nearest(macs: Callable[[int], int], amounts: Sequence[int], original: int, target: float) -> int:
    """The amount whose MACs come closest to `target * original`; more of it never costs more.

    Raises:
        UnreachableError: none comes within `TOLERANCE`.
    """
    wanted = target * original
    low, high = 0, len(amounts) - 1
    seen: dict[int, int] = {}

    def at(index: int) -> int:
        if index not in seen:
            seen[index] = macs(amounts[index])
        return seen[index]

    while low < high:  # the first amount at or below the target
        middle = (low + high) // 2
        low, high = (low, middle) if at(middle) <= wanted else (middle + 1, high)
    best = min((i for i in (low - 1, low) if i >= 0), key=lambda i: abs(at(i) - wanted))
    if abs(at(best) - wanted) > TOLERANCE * original:
        raise UnreachableError(f"closest to {target:.2f} of the MACs is {at(best) / original:.2f}")
    return amounts[best]


def replace_linear(linear: nn.Linear, rows: Tensor | None, columns: Tensor | None) -> nn.Linear:
    """A linear layer of the chosen outputs (`rows`) and inputs (`columns`) of another; None is all."""
    weight, bias = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
    if rows is not None:
        weight, bias = weight[rows], None if bias is None else bias[rows]
    weight = weight if columns is None else weight[:, columns]
    new = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        new.weight.copy_(weight)
        if bias is not None:
            new.bias.copy_(bias)
    return new
