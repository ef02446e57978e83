"""Augmentation and resizing on tensors, against numpy and timm's own transform."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference_images import augment, decode, to_input
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform

from vitcompact.errors import DataError

FILL = (124, 116, 104)


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (16, 3, 12, 10), generator=generator, dtype=torch.uint8)


def write(folder: Path, *sizes: tuple[int, int]) -> Path:
    """One picture of each size `(width, height)`, alternating between two classes."""
    for number, size in enumerate(sizes):
        path = folder / ("bee", "ant")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number, 100, 200)).save(path)
    return folder


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [10, 20, 27])
def test_to_input_is_timms_evaluation_transform(interpolation: str, size: int) -> None:
    low, high = (0, 256) if interpolation == "bilinear" else (64, 192)  # PIL clips overshoot between its two passes
    pixels = np.random.default_rng(0).integers(low, high, (10, 10, 3), dtype=np.uint8)
    transform = create_transform((3, size, size), interpolation=interpolation, crop_pct=1.0)
    expected = transform(Image.fromarray(pixels))
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    got = to_input(images, size, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, interpolation)
    level = 1 / 255 / min(IMAGENET_DEFAULT_STD)  # PIL rounds to whole grey values
    assert (got[0] - expected).abs().max() < 1.01 * level


def test_to_input_clips_what_bicubic_overshoots() -> None:
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    images[..., 4:] = 255
    got = to_input(images, 32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bicubic")
    assert [got.min(), got.max()] == [0.0, 1.0]


def test_augment_moves_and_mirrors_by_reflection(images: torch.Tensor) -> None:
    shift, (height, width) = 3, images.shape[-2:]
    moved = augment(images, torch.Generator().manual_seed(0), shift, 0, FILL)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (shift, shift), (shift, shift)), mode="reflect")
    found = set()
    for before, after in zip(padded, moved.numpy(), strict=True):
        matches = [
            (x, y, mirrored)
            for x in range(2 * shift + 1)
            for y in range(2 * shift + 1)
            for mirrored in (False, True)
            if np.array_equal(before[:, y : y + height, x : x + width][:, :, :: -1 if mirrored else 1], after)
        ]
        assert len(matches) == 1
        found.update(matches)
    assert len({mirrored for _, _, mirrored in found}) == 2
    assert len({x for x, _, _ in found}) > 3
    assert len({y for _, y, _ in found}) > 3


def test_augment_covers_a_square(images: torch.Tensor) -> None:
    seed, side = 5, 4
    whole = augment(images, torch.Generator().manual_seed(seed), 2, 0, FILL)
    covered = augment(images, torch.Generator().manual_seed(seed), 2, side, FILL)
    changed = (whole != covered).any(dim=1)
    assert (covered.permute(0, 2, 3, 1)[changed] == torch.tensor(FILL, dtype=torch.uint8)).all()
    counts = changed.sum(dim=(1, 2))
    assert counts.max() == side * side
    assert counts.min() >= (side // 2) ** 2 - 1  # sticks out by at most half of it; a pixel may equal the fill


def test_augment_depends_on_the_generator_alone(images: torch.Tensor) -> None:
    first, again, other = (augment(images, torch.Generator().manual_seed(seed), 2, 4, FILL) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_decode_reads_classes_in_timms_order(tmp_path: Path) -> None:
    images, labels, names = decode(write(tmp_path, (6, 5), (6, 5), (6, 5)))
    assert images.shape == (3, 3, 5, 6)
    assert names == ["ant", "bee"]
    assert [(int(image[0, 0, 0]), int(label)) for image, label in zip(images, labels, strict=True)] == [
        (1, 0),
        (0, 1),
        (2, 1),
    ]


def test_decode_draws_a_sample(tmp_path: Path) -> None:
    folder = write(tmp_path, *[(4, 4)] * 12)
    samples = [decode(folder, 5, seed)[0][:, 0, 0, 0].tolist() for seed in (0, 0, 1)]
    assert samples[0] == samples[1]
    assert samples[0] != samples[2]
    assert all(len(set(sample)) == 5 for sample in samples)


def test_decode_refuses_mixed_sizes_and_missing_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one size"):
        decode(write(tmp_path, (4, 4), (5, 4)))
    with pytest.raises(DataError, match="does not exist"):
        decode(tmp_path / "nowhere")
