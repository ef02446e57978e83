from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import create_dataset, create_transform
from timm.models import VisionTransformer

from vitcompact.data import CalibrationImages, DataOptions, ImageBatches, resolve_input
from vitcompact.errors import DataError, UsageError

from .image_files import corrupt_files, fill


def gathered(images: ImageBatches) -> torch.Tensor:
    return torch.cat(list(images))


def test_the_subset_is_spread_over_all_classes(model: VisionTransformer, tmp_path: Path) -> None:
    root = fill(tmp_path / "images", tuple("abcdefgh"), each=8)
    images = CalibrationImages(model, DataOptions(data_dir=root, num_samples=24))
    touched = {index // 8 for index in images._images.indices}
    assert images.num_samples == 24
    assert len(touched) >= 6


def test_passes_seeds_workers_and_cache(model: VisionTransformer, image_folder: Path) -> None:
    def make(**options: int) -> CalibrationImages:
        settings: dict[str, Any] = {"num_samples": 7, "batch_size": 3, "workers": 0, "seed": 1, **options}
        return CalibrationImages(model, DataOptions(data_dir=image_folder, **settings))

    images = make()
    assert isinstance(images, ImageBatches)
    assert [tuple(batch.shape) for batch in images] == [(3, 3, 32, 32), (3, 3, 32, 32), (1, 3, 32, 32)]
    assert len(images) == 3
    first = gathered(images)
    assert first.dtype == torch.float32
    for other in (images, make(workers=3), make(cache_mb=0), make(batch_size=5)):
        assert torch.equal(first, gathered(other))
    assert not torch.equal(first, gathered(make(seed=2)))


def test_values_are_those_of_timms_own_evaluation(model: VisionTransformer, image_folder: Path) -> None:
    dataset = create_dataset("", root=str(image_folder))
    cfg = {**model.pretrained_cfg, "input_size": (3, 32, 32)}
    names = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
    transform = create_transform(**{name: cfg[name] for name in names})
    images = CalibrationImages(model, DataOptions(data_dir=image_folder))
    expected = torch.stack([transform(dataset[i][0]) for i in images._images.indices])
    torch.testing.assert_close(gathered(images), expected, rtol=0, atol=1e-6)


def test_corrupt_images_are_skipped_named_and_not_replaced(
    model: VisionTransformer, damaged_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "vitcompact"):
        images = CalibrationImages(model, DataOptions(data_dir=damaged_folder, batch_size=4))
    assert {name for name, _ in images.skipped} == {f"cat/{name}" for name in corrupt_files()}
    assert images.num_samples == 18 == len(gathered(images))
    assert len(torch.unique(gathered(images).flatten(1), dim=0)) == 18
    assert len(images) == len(list(images))
    assert "skipped 6 unreadable of 24 images" in caplog.text
    assert len([r for r in caplog.records if "skipped" in r.message]) == 1


def test_only_corrupt_images_are_an_error(model: VisionTransformer, tmp_path: Path) -> None:
    for name, content in corrupt_files().items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="none of the 6 images"):
        CalibrationImages(model, DataOptions(data_dir=tmp_path))


def test_images_that_vanish_are_skipped(model: VisionTransformer, image_folder: Path) -> None:
    images = CalibrationImages(model, DataOptions(data_dir=image_folder, cache_mb=0))
    (image_folder / "ant" / "0.png").unlink()
    assert len(gathered(images)) == 17
    assert [name for name, _ in images.skipped] == ["ant/0.png"]


def test_overrides_and_configuration(model: VisionTransformer, image_folder: Path) -> None:
    options = DataOptions(data_dir=image_folder, img_size=48, mean=(0.5,), std=(0.25, 0.25, 0.25), crop_pct=0.5)
    config = CalibrationImages(model, options).config
    assert config.input_size == (3, 48, 48)
    assert (config.mean, config.std, config.crop_pct) == ((0.5,) * 3, (0.25,) * 3, 0.5)
    assert next(iter(CalibrationImages(dict(model.pretrained_cfg), options))).shape[-1] == 48


def test_the_size_a_model_was_built_for_beats_its_configuration(model: VisionTransformer) -> None:
    assert model.pretrained_cfg["input_size"] == (3, 160, 160)
    assert resolve_input(model).input_size == (3, 32, 32)


def test_channels(image_folder: Path) -> None:
    grey = resolve_input({"input_size": (1, 32, 32)}, DataOptions(mean=(0.5,)))
    assert (grey.input_size, grey.image_mode, grey.mean) == ((1, 32, 32), "L", (0.5,))
    assert len(grey.std) == 1
    cfg = {"input_size": (1, 32, 32), "mean": (0.5,), "std": (0.5,)}
    assert next(iter(CalibrationImages(cfg, DataOptions(data_dir=image_folder)))).shape[1] == 1
    five = {"input_size": (5, 32, 32), "mean": (0.5,) * 5, "std": (0.5,) * 5}
    assert resolve_input(five).input_size == (5, 32, 32)
    with pytest.raises(UsageError, match="model takes 5"):
        next(iter(CalibrationImages(five, DataOptions(data_dir=image_folder))))
    with pytest.raises(UsageError, match="mean needs 1 or 3 values"):
        resolve_input(timm.create_model("test_vit"), DataOptions(mean=(0.1, 0.2)))
