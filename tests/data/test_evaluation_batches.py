from __future__ import annotations

import logging
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from vitcompact.data import DataOptions, evaluation_batches

from .image_files import fill


def test_whole_split_in_order(model: nn.Module, image_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    batches = evaluation_batches(model, DataOptions(data_dir=image_folder, batch_size=8))
    passes = [list(batches) for _ in range(2)]
    assert torch.cat([labels for _, labels in passes[0]]).tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert torch.equal(torch.cat([i for i, _ in passes[0]]), torch.cat([i for i, _ in passes[1]]))
    assert [tuple(images.shape) for images, _ in passes[0]] == [(8, 3, 32, 32), (8, 3, 32, 32), (2, 3, 32, 32)]
    assert (batches.num_samples, batches.num_batches) == (18, 3)
    assert not caplog.records


def test_subset_is_random_but_in_order(model: nn.Module, image_folder: Path) -> None:
    batches = evaluation_batches(model, DataOptions(data_dir=image_folder, num_samples=9))
    labels = torch.cat([labels for _, labels in batches]).tolist()
    assert labels == sorted(labels)
    assert len(labels) == 9
    assert len(set(labels)) == 3


def test_corrupt_images_keep_the_others_with_their_labels(model: nn.Module, damaged_folder: Path) -> None:
    batches = evaluation_batches(model, DataOptions(data_dir=damaged_folder, batch_size=5))
    assert torch.cat([labels for _, labels in batches]).tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert batches.num_samples == 18
    assert len(batches.skipped) == 6


def test_another_number_of_classes_is_a_warning(image_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vitcompact"):
        evaluation_batches(timm.create_model("test_vit", num_classes=10), DataOptions(data_dir=image_folder))
    assert "has 3 classes, the model's head has 10" in caplog.text


def test_flat_folder_has_no_labels(model: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = fill(tmp_path / "flat", ("",), each=4)
    with caplog.at_level(logging.WARNING, "vitcompact"):
        ((_, labels),) = evaluation_batches(model, DataOptions(data_dir=root))
    assert labels.tolist() == [-1] * 4
    assert "no labels" in caplog.text
