from __future__ import annotations

import random
from collections.abc import Generator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy import asarray
from PIL import Image
from timm.models import VisionTransformer
from torch import Tensor, nn

from vitcompact.data import Augment, CalibrationImages, DataOptions, training_loader
from vitcompact.data.augment import augmented, crop_box
from vitcompact.errors import DataError, UsageError

from .image_files import corrupt_files, encoded, fill, picture

Batch = tuple[Tensor, Tensor]


def first(
    model: nn.Module, root: Path, steps: int, start: int = 0, augment: Augment | None = Augment(), **options: Any
) -> list[Batch]:
    settings: dict[str, Any] = {"batch_size": 4, "workers": 0, **options}
    return list(islice(training_loader(model, DataOptions(data_dir=root, **settings), augment).batches(start), steps))


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("start", [1, 4, 6])
def test_a_resumed_stream_equals_the_uninterrupted_one(
    model: VisionTransformer, image_folder: Path, start: int
) -> None:
    whole = first(model, image_folder, 10)  # 4 steps an epoch: crosses two epochs
    assert same(whole[start:], first(model, image_folder, 10 - start, start))


@pytest.mark.parametrize("other", [{"workers": 3}, {"cache_mb": 0}])
def test_workers_and_cache_change_nothing(model: VisionTransformer, image_folder: Path, other: dict[str, Any]) -> None:
    assert same(first(model, image_folder, 10), first(model, image_folder, 10, **other))


def test_epochs_and_seeds_differ(model: VisionTransformer, image_folder: Path) -> None:
    loader = training_loader(model, DataOptions(data_dir=image_folder, batch_size=6))
    epochs = [list(loader.epoch(e)) for e in range(2)]
    assert [len(epoch) for epoch in epochs] == [3, 3] == [loader.steps_per_epoch] * 2
    assert not same(epochs[0], epochs[1])
    assert sorted(torch.cat([labels for _, labels in epochs[1]]).tolist()) == [0] * 6 + [1] * 6 + [2] * 6
    assert same(list(loader.epoch(1, start=2)), epochs[1][2:])
    assert not same(first(model, image_folder, 3), first(model, image_folder, 3, seed=1))


def test_without_augmentation_an_epoch_is_the_evaluation_images(model: VisionTransformer, image_folder: Path) -> None:
    batches = first(model, image_folder, 3, augment=None, batch_size=6)
    images = torch.cat([images for images, _ in batches])
    again = torch.cat([images for images, _ in first(model, image_folder, 3, 3, augment=None, batch_size=6)])
    assert len(torch.unique(images.flatten(1), dim=0)) == 18
    assert torch.equal(images.flatten(1).sum(1).sort().values, again.flatten(1).sum(1).sort().values)


def test_no_augmentation_can_be_asked_for(model: VisionTransformer, image_folder: Path) -> None:
    plain = first(model, image_folder, 5, augment=Augment(no_aug=True))
    assert same(plain, first(model, image_folder, 5, augment=None))
    options = DataOptions(data_dir=image_folder, batch_size=4)
    assert [training_loader(model, options, Augment(no_aug=off)).varies for off in (True, False)] == [False, True]


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5", "original", "augmix-m3-w2"])
def test_policies_of_timm_depend_on_the_seed_alone(policy: str, model: VisionTransformer, image_folder: Path) -> None:
    """They draw from generators that all threads share."""
    augment = Augment(aa=policy)
    whole = first(model, image_folder, 6, augment=augment)
    random.seed(1)
    state = random.getstate()
    assert same(whole[2:], first(model, image_folder, 4, start=2, augment=augment, workers=3))
    assert random.getstate() == state
    assert not same(whole, first(model, image_folder, 6))
    assert not same(whole, first(model, image_folder, 6, augment=augment, seed=1))


def test_policies_that_timm_does_not_have_are_refused(model: VisionTransformer, image_folder: Path) -> None:
    for wrong in ("best", "rand-x9", "augmix-q1", ""):
        with pytest.raises(UsageError, match=f"`aa` takes a policy of timm such as rand-m9-mstd0.5, got '{wrong}'"):
            first(model, image_folder, 1, augment=Augment(aa=wrong))
    with pytest.raises(UsageError, match="`no_aug` excludes `aa`"):
        Augment(aa="original", no_aug=True)


def test_images_that_are_left_out_are_never_served(model: VisionTransformer, image_folder: Path) -> None:
    options = DataOptions(data_dir=image_folder, batch_size=6, workers=0)
    whole = training_loader(model, options, augment=None)
    images, _ = zip(*whole.epoch(0), strict=True)
    apart = CalibrationImages(model, DataOptions(data_dir=image_folder, num_samples=6))
    rest = training_loader(model, options, augment=None, without=apart.places)
    assert (whole.num_samples, rest.num_samples) == (18, 12)
    served = {float(image.sum()) for epoch in range(2) for batch, _ in rest.epoch(epoch) for image in batch}
    every = {float(image.sum()) for batch in images for image in batch}
    assert every - served == {float(image.sum()) for batch in apart for image in batch}
    with pytest.raises(DataError, match="no image of"):
        training_loader(model, options, without=range(18))


def test_every_batch_is_full_and_normalised(model: VisionTransformer, image_folder: Path) -> None:
    for images, labels in first(model, image_folder, 5):
        assert images.shape == (4, 3, 32, 32)
        assert images.dtype == torch.float32
        assert -3 < float(images.mean()) < 3
        assert labels.shape == (4,)


def test_a_small_data_set_is_one_batch(model: VisionTransformer, tmp_path: Path) -> None:
    loader = training_loader(model, DataOptions(data_dir=fill(tmp_path / "few", each=1), batch_size=64))
    assert (loader.batch_size, loader.steps_per_epoch, loader.num_samples) == (3, 1, 3)
    assert [len(images) for images, _ in islice(loader.batches(), 3)] == [3, 3, 3]


def test_unreadable_images_are_replaced_by_others_and_named(model: VisionTransformer, damaged_folder: Path) -> None:
    whole = first(model, damaged_folder, 12)
    assert all(len(images) == 4 for images, _ in whole)
    assert same(whole[5:], first(model, damaged_folder, 7, 5, workers=2))
    loader = training_loader(model, DataOptions(data_dir=damaged_folder, batch_size=24))
    list(loader.epoch(0))
    assert {name for name, _ in loader.skipped} == {f"cat/{name}" for name in corrupt_files()}


def test_only_unreadable_images_are_an_error(model: VisionTransformer, tmp_path: Path) -> None:
    for name, content in corrupt_files().items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="unreadable"):
        first(model, tmp_path, 1)


def test_num_samples_limits_the_images_drawn_from(model: VisionTransformer, image_folder: Path) -> None:
    loader = training_loader(model, DataOptions(data_dir=image_folder, num_samples=5, batch_size=5), augment=None)
    seen = [images.flatten(1).sum(1).sort().values for images, _ in islice(loader.batches(), 4)]
    assert all(torch.equal(seen[0], other) for other in seen)


def test_a_consumer_may_stop_early(model: VisionTransformer, image_folder: Path) -> None:
    stream = training_loader(model, DataOptions(data_dir=image_folder, batch_size=4, workers=2)).batches()
    assert isinstance(stream, Generator)
    next(stream)
    stream.close()


def test_crops_stay_inside_and_keep_their_scale() -> None:
    rng = random.Random(0)
    augment = Augment(scale=(0.5, 0.9))
    for _ in range(200):
        height, width = rng.randint(3, 60), rng.randint(3, 60)
        top, left, h, w = crop_box(height, width, augment, rng)
        assert 0 <= top <= top + h <= height
        assert 0 <= left <= left + w <= width
        assert min(h, w) >= 1
    areas = [h * w / 10_000 for _, _, h, w in (crop_box(100, 100, augment, rng) for _ in range(200))]
    assert 0.45 < min(areas) < 0.6
    assert 0.8 < max(areas) < 0.95


@pytest.mark.parametrize("shape", [(1, 90), (90, 1)])
def test_extreme_shapes_can_be_cropped(shape: tuple[int, int]) -> None:
    _, _, height, width = crop_box(*shape, Augment(), random.Random(0))
    assert (height, width) == (1, 1)


def test_flip_mirrors() -> None:
    pixels = torch.arange(3 * 4 * 4, dtype=torch.uint8).reshape(3, 4, 4)
    whole: dict[str, Any] = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    plain, mirrored = (
        augmented(pixels, (4, 4), "bicubic", Augment(**whole, hflip=p), random.Random(0)) for p in (0.0, 1.0)
    )
    assert torch.equal(plain, pixels)
    assert torch.equal(mirrored, pixels.flip(-1))


def test_resampling_is_pillows_to_one_grey_level() -> None:
    image = picture(3, 24, 30)
    pixels = torch.from_numpy(asarray(image).copy()).permute(2, 0, 1)
    augment = Augment(scale=(0.7, 0.7), hflip=0)
    top, left, height, width = crop_box(24, 30, augment, random.Random(5))
    ours = augmented(pixels, (32, 32), "bicubic", augment, random.Random(5))
    pillows = image.crop((left, top, left + width, top + height)).resize((32, 32), Image.Resampling.BICUBIC)
    difference = torch.from_numpy(asarray(pillows).copy()).permute(2, 0, 1).int() - ours.int()
    assert int(difference.abs().max()) <= 1


def test_large_photographs_are_cached_reduced(model: VisionTransformer, tmp_path: Path) -> None:
    (tmp_path / "big.jpg").write_bytes(encoded(picture(1, 600, 800), "JPEG"))
    loader = training_loader(model, DataOptions(data_dir=tmp_path))
    next(loader.batches())
    assert min(loader._cache.get(0)[0].shape[1:]) < 128  # type: ignore[attr-defined]


def test_features_are_learned_from_smaller_crops(model: VisionTransformer, image_folder: Path) -> None:
    for num_classes, smallest in ((5, 0.8), (0, 0.35)):
        model.num_classes = num_classes
        explicit = first(model, image_folder, 2, augment=Augment(scale=(smallest, 1.0)))
        assert same(first(model, image_folder, 2), explicit)


@pytest.mark.parametrize("wrong", [{"scale": (0.0, 1.0)}, {"scale": (0.9, 0.5)}, {"ratio": (2, 1)}, {"hflip": 2.0}])
def test_wrong_augmentation_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Augment(**wrong)
