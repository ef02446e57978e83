"""Data sets that can only be iterated, with a stand-in for timm's readers of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from PIL import Image
from timm.data.dataset import IterableImageDataset
from torch import nn

import vitcompact.data.open as opening
from vitcompact.data import CalibrationImages, DataOptions, evaluation_batches, overlap, training_loader
from vitcompact.errors import DataError

from .image_files import picture

OPTIONS = DataOptions(dataset="wds/set", data_dir="somewhere", num_samples=8, batch_size=4, workers=2)


class FakeReader:
    """20 pictures of 2 classes, shuffled by seed when training, as timm's reader of web data sets."""

    size = 20

    def __init__(self, is_training: bool, seed: int) -> None:
        self.class_to_idx = {"a": 0, "b": 1, "c": 2}
        self.order = list(range(self.size))
        if is_training:
            random.Random(seed).shuffle(self.order)

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        for i in self.order:
            yield picture(i), i % 2


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, root: str, is_training: bool = False, seed: int = 42, **_: Any) -> IterableImageDataset:
        return IterableImageDataset(root, reader=FakeReader(is_training, seed))

    monkeypatch.setattr(opening, "create_dataset", create)


def test_calibration_takes_a_seeded_sample(model: nn.Module) -> None:
    images = CalibrationImages(model, OPTIONS)
    assert (images.num_samples, len(images)) == (8, 2)
    assert torch.equal(torch.cat(list(images)), torch.cat(list(CalibrationImages(model, OPTIONS))))


def test_a_stream_needs_a_number_of_samples(model: nn.Module) -> None:
    with pytest.raises(DataError, match="`num_samples`"):
        CalibrationImages(model, DataOptions(dataset="wds/set"))


def test_evaluation_reads_in_order(model: nn.Module) -> None:
    batches = evaluation_batches(model, DataOptions(dataset="wds/set", batch_size=8))
    assert batches.num_samples is None
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 1] * 10
    assert batches.num_samples == 20
    assert sum(len(labels) for _, labels in evaluation_batches(model, OPTIONS)) == 8


def test_training_resumes_and_shuffles(model: nn.Module) -> None:
    loader = training_loader(model, DataOptions(dataset="wds/set", batch_size=6))
    assert loader.steps_per_epoch == 3
    whole = [images for images, _ in islice(loader.batches(), 8)]
    resumed = [images for images, _ in islice(loader.batches(5), 3)]
    assert all(torch.equal(a, b) for a, b in zip(whole[5:], resumed, strict=True))
    assert not torch.equal(whole[0], whole[3])


def test_overlap_of_streams_is_not_decoded() -> None:
    assert overlap(OPTIONS, OPTIONS) == 0


def test_empty_streams_are_errors(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeReader, "size", 0)
    with pytest.raises(DataError, match="no images"):
        CalibrationImages(model, OPTIONS)
    with pytest.raises(DataError, match="no images"):
        list(evaluation_batches(model, OPTIONS))
    with pytest.raises(DataError, match="no images"):
        next(training_loader(model, OPTIONS).batches())
    with pytest.raises(DataError, match="`num_samples`"):
        training_loader(model, DataOptions(dataset="wds/set"))
