from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from vitcompact.data import ImageBatches, from_tensor
from vitcompact.errors import UsageError


def images(n: int, side: int = 8) -> Tensor:
    return torch.randn(n, 3, side, side)


def test_a_tensor_is_split_and_can_be_read_again() -> None:
    given = images(10)
    batches = from_tensor(given, batch_size=4)
    assert isinstance(batches, ImageBatches)
    assert [len(b) for b in batches] == [4, 4, 2]
    assert (len(batches), batches.num_samples, batches.skipped) == (3, 10, [])
    assert torch.equal(torch.cat(list(batches)), given)
    assert torch.equal(torch.cat(list(batches)), given)


def test_a_generator_is_read_once_and_kept() -> None:
    given = [images(3), images(5)]
    reads = []

    def one_shot() -> Iterator[Tensor]:
        for batch in given:
            reads.append(len(batch))
            yield batch

    batches = from_tensor(one_shot(), batch_size=4)
    for _ in range(2):
        assert torch.equal(torch.cat(list(batches)), torch.cat(given))
    assert reads == [3, 5]
    assert [len(b) for b in batches] == [3, 4, 1]


def test_a_shuffling_loader_with_labels_is_frozen() -> None:
    loader = DataLoader(TensorDataset(images(12), torch.arange(12)), batch_size=5, shuffle=True)
    batches = from_tensor(loader)
    assert torch.equal(torch.cat(list(batches)), torch.cat(list(batches)))
    assert batches.num_samples == 12


def test_image_batches_pass_through() -> None:
    batches = from_tensor(images(2))
    assert from_tensor(batches) is batches


def test_half_precision_becomes_float32() -> None:
    assert next(iter(from_tensor(images(2).half()))).dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(3, 8, 8), "shape"),
        (torch.zeros(2, 8, 8, 3), "channels come second"),
        (torch.zeros(2, 1, 8, 8), r"\(n, 3, height, width\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "uint8"),
        (torch.full((1, 3, 8, 8), float("nan")), "not finite"),
        (torch.full((1, 3, 8, 8), float("inf")), "not finite"),
        (torch.zeros(0, 3, 8, 8), "empty"),
        ([], "empty"),
        ([torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 9, 9)], "one size"),
        (["image.png"], "got str"),
        ("images", "got str"),
        (7, "got int"),
        ({"images": torch.zeros(1, 3, 8, 8)}, "got dict"),
    ],
)
def test_wrong_images_are_refused(given: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_tensor(given)


def test_an_endless_iterable_stops_at_the_memory_limit() -> None:
    def endless() -> Iterator[Tensor]:
        while True:
            yield images(4, 64)

    with pytest.raises(UsageError, match="exceed 1 MiB"):
        from_tensor(endless(), limit_mb=1)
