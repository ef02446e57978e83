"""Images of one small size as a tensor: decoded once, augmented and resized in batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import create_dataset
from torch import Tensor

from vitcompact.errors import DataError


def decode(source: Path, num_samples: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor, list[str]]:
    """All images of a folder or tar of class folders, or `num_samples` drawn at random.

    Returns: uint8 images `(n, 3, height, width)`, labels `(n,)`, and the names of the classes.

    Raises:
        DataError: there are none, or their sizes differ.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist; give a folder of class folders, or a .tar of them")
    dataset = create_dataset("", root=str(source))
    indices: Sequence[int] = range(len(dataset))
    if num_samples is not None:
        shuffled = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
        indices = sorted(shuffled[:num_samples].tolist())
    images, labels, sizes = [], [], set()
    for index in indices:
        image, label = dataset[index]
        images.append(np.asarray(image.convert("RGB")))
        labels.append(label)
        sizes.add(image.size)
        if len(sizes) > 1:
            raise DataError(f"{source}: images of one size are needed, got {' and '.join(map(str, sorted(sizes)))}")
    if not images:
        raise DataError(f"{source}: no images")
    reader = dataset.reader
    names = reader.class_name_to_idx if hasattr(reader, "class_name_to_idx") else reader.class_to_idx
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(labels), sorted(names, key=names.get)


def augment(images: Tensor, generator: torch.Generator, shift: int, cutout: int, fill: tuple[int, ...]) -> Tensor:
    """Each image mirrored or not, moved by up to `shift` pixels (edges reflected), and a square of it covered.

    Args:
        images: `(n, 3, height, width)`, uint8.
        cutout: pixels of the square's side; it may stick out. 0: none.
        fill: one value per channel, what the square shows.
    """
    n, _, height, width = images.shape

    def draw(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (n, 1), generator=generator).to(images.device)

    x, y = torch.arange(width, device=images.device), torch.arange(height, device=images.device)
    columns, rows = _reflect(x + draw(-shift, shift), width), _reflect(y + draw(-shift, shift), height)
    columns = torch.where(draw(0, 1).bool(), width - 1 - columns, columns)
    every = torch.arange(n, device=images.device)[:, None, None]
    moved = images[every, :, rows[:, :, None], columns[:, None, :]]  # (n, height, width, 3)
    if cutout:
        left, top = draw(-cutout // 2, width - cutout // 2), draw(-cutout // 2, height - cutout // 2)
        covered_columns, covered_rows = (x >= left) & (x < left + cutout), (y >= top) & (y < top + cutout)
        covered = covered_rows[:, :, None] & covered_columns[:, None, :]
        moved[covered] = torch.tensor(fill, dtype=images.dtype, device=images.device)
    return moved.permute(0, 3, 1, 2)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Indices beyond the edges of `range(size)`, mirrored back at the first and last element."""
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)


def to_input(images: Tensor, size: int, mean: tuple[float, ...], std: tuple[float, ...], interpolation: str) -> Tensor:
    """What timm's evaluation transform makes of uncropped images: resized to `size` pixels, normalised.

    Args:
        images: `(n, 3, height, width)`, uint8.
        interpolation: "bilinear" or "bicubic".
    """
    inputs = images.to(torch.float32) / 255
    if inputs.shape[-2:] != (size, size):
        inputs = F.interpolate(inputs, (size, size), mode=interpolation, antialias=True, align_corners=False)
        inputs = inputs.clamp(0, 1)  # bicubic overshoots
    shape = (1, -1, 1, 1)
    inputs = (inputs - inputs.new_tensor(mean).view(shape)) / inputs.new_tensor(std).view(shape)
    return inputs.contiguous(memory_format=torch.channels_last)
