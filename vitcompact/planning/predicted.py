"""What an expected loss increase means to those who use the model: answers that stay the same, or cosines of features.

Layers of the original are disturbed by noise, more and more, on images that no fit sees; each time the change of the
output is measured as losses are, and so is the likeness of the answers. A loss is looked up between these points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitcompact.calibration.held_out import is_held_out
from vitcompact.calibration.sensitivity import Answer, answer, change
from vitcompact.data import ImageBatches, ImageShare, processes_of, rebatched
from vitcompact.data.apart import chosen_of
from vitcompact.models import Site
from vitcompact.models.forward import num_classes
from vitcompact.models.scores import Mean, cosines, same_guess
from vitcompact.options.selection import Keep
from vitcompact.utils.device import device_of
from vitcompact.utils.hooks import hooked
from vitcompact.utils.intervals import Interval, wilson

NOISE = (0.05, 0.1, 0.2, 0.4)
"""Standard deviations, relative to what a layer gives."""
LARGEST = 64
MICRO_BATCH = 16

Measure = Literal["agreement", "cosine"]


@dataclass(frozen=True)
class Predicted:
    """Likeness to the original by loss increase.

    Attributes:
        measure: `agreement`, the share of images with the same first guess; `cosine` of pooled features without a head.
        points: measured (loss, likeness), by loss.
        num_samples: images that they were measured on.
    """

    measure: Measure
    points: tuple[tuple[float, float], ...]
    num_samples: int

    def at(self, loss: float) -> float:
        """The likeness that a loss increase lets expect; beyond what was measured, at most this."""
        root = math.sqrt(max(loss, 0.0))
        known = [(0.0, 1.0), *((math.sqrt(each), likeness) for each, likeness in self.points)]
        for (low, before), (high, after) in pairwise(known):
            if root <= high:
                return before + (after - before) * (root - low) / max(high - low, 1e-300)
        return known[-1][1]

    def interval(self, loss: float) -> Interval | None:
        """95 % interval of an agreement, as far as the number of images limits it; None of a cosine."""
        if self.measure == "cosine":
            return None
        return wilson(round(self.at(loss) * self.num_samples), self.num_samples)

    def to_json(self, loss: float) -> dict[str, Any]:
        """Keys: measure, value, interval, num_samples."""
        value, interval = self.at(loss), self.interval(loss)
        return {"measure": self.measure, "value": value, "interval": interval, "num_samples": self.num_samples}


@torch.no_grad()
def predict(
    original: nn.Module, sites: Sequence[Site], images: ImageBatches, seed: int = 0, keep: Keep = "both"
) -> Predicted:
    """Measure the points, on at most `LARGEST` held-out images (all of them where none are held out).

    Args:
        original: in eval mode; left as it is.
        sites: whose outputs are disturbed.
        keep: what counts of the features of a model without a head.
    """
    processes, chosen = processes_of(images), _held_out(images).to(device_of(original))
    before = [answer(original, part, keep) for part in chosen.split(MICRO_BATCH)]
    head = num_classes(original) > 0
    measured: list[tuple[float, float]] = []
    for scale in NOISE[processes.rank :: processes.world]:
        generator = torch.Generator().manual_seed(seed)
        loss, likeness = Mean(), Mean()
        with hooked(original, {site.tap: _disturbing(scale, generator) for site in sites}):
            after = [answer(original, part, keep) for part in chosen.split(MICRO_BATCH)]
        for old, new in zip(before, after, strict=True):
            loss.add(change(old, new))
            likeness.add(_likeness(old, new))
        measured.append((loss.value() or 0.0, likeness.value() or 0.0))
    points, least = [], 1.0
    for lost, alike in _in_turn(processes.gathered(measured)):
        least = min(least, alike)
        points.append((lost, least))
    return Predicted("agreement" if head else "cosine", tuple(sorted(points, key=lambda each: each[0])), len(chosen))


def _likeness(old: Answer, new: Answer) -> Tensor:
    """Of each image: the same first guess, or the cosine of what counts of the features, the pooled ones first."""
    if isinstance(old, Tensor):
        assert isinstance(new, Tensor)
        return same_guess(old, new).double()
    first, second = next((a, b) for a, b in zip(old, new, strict=True) if a is not None and b is not None)
    return cosines(first, second).reshape(len(first), -1).mean(-1)


def _in_turn(found: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """What the processes have measured, each every so many of the scales, in the order of these."""
    return [(point[0], point[1]) for turn in zip_longest(*found) for point in turn if point is not None]


def _held_out(images: ImageBatches) -> Tensor:
    total = images.num_samples
    if isinstance(images, ImageShare):
        places = [place for place in range(total) if is_held_out(place, total)] or list(range(total))
        return images.of_all(places[:LARGEST])
    held = list(chosen_of(images, lambda place: is_held_out(place, total)))
    parts = held or list(rebatched(images, MICRO_BATCH))
    return torch.cat(parts)[:LARGEST]


def _disturbing(scale: float, generator: torch.Generator) -> Callable[..., Tensor]:
    """A hook that adds noise of a share of the output's own size."""

    def hook(_: nn.Module, __: object, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return output
        noise = torch.randn(output.shape, generator=generator).to(output)
        return output + scale * output.square().mean().sqrt() * noise

    return hook
