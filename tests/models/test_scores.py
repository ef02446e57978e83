from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from vitcompact.models.scores import Likeness, Mean, cosines, neighbour_agreement, same_guess, top_k_hits


def test_mean_does_not_depend_on_the_batches() -> None:
    values = torch.rand(1000)
    whole, parts = Mean(), Mean()
    whole.add(values)
    for part in values.split(7):
        parts.add(part)
    assert math.isclose(whole.value() or 0, parts.value() or 1, rel_tol=1e-12)
    assert Mean().value() is None


def test_top_k() -> None:
    logits = torch.tensor([[3.0, 2, 1], [1, 2, 3], [1, float("nan"), 0]])
    labels = torch.tensor([1, 2, 0])
    assert top_k_hits(logits, labels, 1).tolist() == [False, True, False]
    assert top_k_hits(logits, labels, 2).tolist() == [True, True, False]
    assert top_k_hits(logits, labels, 5).tolist() == [True, True, False]
    assert top_k_hits(logits, torch.tensor([7, -1, 0]), 5).tolist() == [False] * 3


def test_cosines() -> None:
    first = torch.tensor([[1.0, 0], [1, 1], [0, 0], [float("nan"), 1]])
    second = torch.tensor([[1.0, 1], [-2, -2], [1, 0], [1, 1]])
    torch.testing.assert_close(cosines(first, second), torch.tensor([0.5**0.5, -1, 0, 0], dtype=torch.float64))


def test_neighbours_against_a_direct_computation() -> None:
    first, second = torch.randn(50, 8), torch.randn(50, 8)
    second[:25] = first[:25] + 0.3 * second[:25]

    def nearest(rows: torch.Tensor) -> torch.Tensor:
        similarity = F.cosine_similarity(rows[:, None], rows[None], dim=-1)
        return similarity.fill_diagonal_(-2).argmax(1)

    expected = float((nearest(first) == nearest(second)).double().mean())
    assert 0 < expected < 1
    for chunk in (50, 7, 1024):
        assert neighbour_agreement(first, second, chunk) == expected


def test_neighbours_ignore_scale_and_need_three_images() -> None:
    rows = torch.randn(10, 4)
    assert neighbour_agreement(rows, 5 * rows) == 1.0
    assert neighbour_agreement(rows[:2], rows[:2]) is None


def test_likeness_weighs_images_alike_whatever_the_batches() -> None:
    first, second = torch.randn(7, 5), torch.randn(7, 5)
    first[:3] = second[:3]
    whole, parts = Likeness(), Likeness()
    whole.add(first, second)
    for size in (slice(0, 2), slice(2, 7)):
        parts.add(first[size], second[size])
    assert whole.agreement == parts.agreement == float(same_guess(first, second).double().mean()) >= 3 / 7
    assert whole.cosine == pytest.approx(parts.cosine)
    assert whole.cosine == pytest.approx(float(cosines(first, second).mean()))
