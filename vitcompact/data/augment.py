"""Light augmentation for distillation (`Augment`): a random crop of mild scale, resized, and a horizontal flip."""

from __future__ import annotations

import math
import random

import torch.nn.functional as F
from torch import Tensor

from vitcompact.options.data import Augment


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
