"""Light augmentation for distillation: a random crop of mild scale, resized, and a horizontal flip."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from vitcompact.errors import UsageError

CLASSIFIER_SCALE = 0.8
FEATURE_SCALE = 0.35
"""Smallest share of an image's area in a crop, both measured (docs/results.md)."""


@dataclass(frozen=True)
class Augment:
    """What is varied from epoch to epoch.

    Attributes:
        scale: smallest and largest share of the image's area that the crop takes; None is from `CLASSIFIER_SCALE`, or
            `FEATURE_SCALE` for a model without a head, to 1 (`resolved`).
        ratio: smallest and largest width over height of the crop.
        hflip: probability of a left-right flip; 0 for images that change meaning when mirrored.
    """

    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (0.9, 1 / 0.9)
    hflip: float = 0.5

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UsageError(f"crop scale must satisfy 0 < smallest <= largest <= 1, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UsageError(f"crop ratio must satisfy 0 < smallest <= largest, got {self.ratio}")
        if not 0 <= self.hflip <= 1:
            raise UsageError(f"flip probability must be in [0, 1], got {self.hflip}")

    @property
    def crops(self) -> tuple[float, float]:
        """`scale`, or what it is for a classifier where it was left open."""
        return self.scale or (CLASSIFIER_SCALE, 1.0)

    def resolved(self, model: object) -> Augment:
        """With a `scale`: what a classifier says of a small part of an image means little, features of it do."""
        if self.scale is not None or getattr(model, "num_classes", True):
            return self
        return replace(self, scale=(FEATURE_SCALE, 1.0))


def crop_box(height: int, width: int, augment: Augment, rng: random.Random) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop.

    Area uniform in `scale`, aspect ratio log-uniform in `ratio` (the Inception crop, arXiv 1409.4842); ten tries that
    do not fit end in the largest central crop whose ratio is allowed.
    """
    low, high = math.log(augment.ratio[0]), math.log(augment.ratio[1])
    for _ in range(10):
        area = height * width * rng.uniform(*augment.crops)
        ratio = math.exp(rng.uniform(low, high))
        crop_height, crop_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < crop_height <= height and 0 < crop_width <= width:
            top, left = rng.randint(0, height - crop_height), rng.randint(0, width - crop_width)
            return top, left, crop_height, crop_width
    ratio = min(max(width / height, augment.ratio[0]), augment.ratio[1])
    crop_height, crop_width = min(height, round(width / ratio)), min(width, round(height * ratio))
    return (height - crop_height) // 2, (width - crop_width) // 2, max(crop_height, 1), max(crop_width, 1)


def augmented(
    pixels: Tensor, size: tuple[int, int], interpolation: str, augment: Augment, rng: random.Random
) -> Tensor:
    """A random crop of uint8 `pixels` (channels, height, width), resized to `size` (height, width), perhaps flipped.

    torch's antialiased resampling of uint8 gives Pillow's result to one grey level and is two to five times as fast.
    """
    top, left, height, width = crop_box(pixels.shape[1], pixels.shape[2], augment, rng)
    crop = pixels[None, :, top : top + height, left : left + width]
    if interpolation == "nearest":
        resized = F.interpolate(crop, size, mode="nearest-exact")
    else:
        mode = "bilinear" if interpolation == "bilinear" else "bicubic"
        resized = F.interpolate(crop, size, mode=mode, antialias=True)
    flipped = rng.random() < augment.hflip
    return resized[0].flip(-1) if flipped else resized[0]
