"""Light augmentation for distillation (`Augment`): a random crop of mild scale, resized, and a horizontal flip."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform
from torch import Tensor

from vitcompact.data.config import InputConfig
from vitcompact.errors import UsageError
from vitcompact.options.data import Augment

_GLOBAL_RANDOMNESS = threading.Lock()
"""timm's policies draw from the generators of `random` and numpy that all threads share."""


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


def check_policy(name: str) -> None:
    """Refuse what is no policy of timm's, before anything is opened.

    Raises:
        UsageError: see above.
    """
    _transform(name, {"translate_const": 1, "img_mean": (0, 0, 0)})


def _transform(name: str, filling: dict[str, Any]) -> Callable[[Image.Image], Image.Image]:
    makers = {"rand": rand_augment_transform, "augm": augment_and_mix_transform}
    try:
        made: Callable[[Image.Image], Image.Image] = makers.get(name[:4], auto_augment_transform)(name, filling)
    except (AssertionError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise UsageError(f"`aa` takes a policy of timm such as rand-m9-mstd0.5, got '{name}'") from error
    return made


def policy(name: str, config: InputConfig) -> Callable[[Tensor, random.Random], Tensor]:
    """A policy of timm (`rand-m9-mstd0.5`, `original`, `augmix-m3`, …) for uint8 pixels (3, height, width).

    What it draws follows from the generator that it is given, whichever thread it runs in.

    Raises:
        UsageError: there is no such policy, or it is for images of another kind.
    """
    if config.image_mode != "RGB":
        raise UsageError(f"`aa` is for images in colour, and the model takes {config.input_size[0]} channel(s)")
    mean = tuple(min(255, round(255 * part)) for part in config.mean)
    transform = _transform(name, {"translate_const": int(min(config.input_size[1:]) * 0.45), "img_mean": mean})

    def varied(pixels: Tensor, rng: random.Random) -> Tensor:
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        seed = rng.getrandbits(32)
        with _GLOBAL_RANDOMNESS:
            before = random.getstate(), np.random.get_state()
            random.seed(seed)
            np.random.seed(seed)
            try:
                image = transform(image)
            finally:
                random.setstate(before[0])
                np.random.set_state(before[1])
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    return varied
