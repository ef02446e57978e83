"""Scores of outputs, and how alike those of two models are, accumulated in float64: the batch size does not matter."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vitcompact.utils.processes import Processes


class Mean:
    """Mean of values that arrive in batches; None without any."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._count = 0

    def add(self, values: Tensor) -> None:
        self._sum += float(values.double().sum())
        self._count += values.numel()

    def total_over(self, processes: Processes) -> None:
        """From here on the mean of the values of all processes."""
        self._sum, count = processes.sums(self._sum, self._count)
        self._count = round(count)

    @property
    def count(self) -> int:
        """How many values there were."""
        return self._count

    @property
    def total(self) -> float:
        """Their sum."""
        return self._sum

    def value(self, scale: float = 1.0) -> float | None:
        return scale * self._sum / self._count if self._count else None


def top_k_hits(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """bool (batch,): the label is among the `k` largest logits (all of them, of fewer classes).

    A row that is not finite is never right. One output decides between 0 and 1 by its sign.
    """
    if logits.shape[1] == 1:
        return ((logits[:, 0] > 0) == (labels > 0)) & torch.isfinite(logits[:, 0])
    top = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (top == labels[:, None]).any(dim=1) & torch.isfinite(logits).all(dim=1)


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """float64 (...,): cosine along the last axis; 0 where it is not defined (a zero or a non-finite vector)."""
    return torch.nan_to_num(F.cosine_similarity(first.double(), second.double(), dim=-1), nan=0.0)


def first_guess(logits: Tensor) -> Tensor:
    """int64 (batch,): the largest of (batch, outputs); of one output, whether it is positive."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)


def same_guess(first: Tensor, second: Tensor) -> Tensor:
    """bool (batch,): two models' (batch, outputs) have the same `first_guess`."""
    return first_guess(first) == first_guess(second)


class Likeness:
    """How alike the outputs of two models are: the share of equal first guesses, and the mean cosine."""

    def __init__(self) -> None:
        self._same, self._cosine = Mean(), Mean()

    def add(self, first: Tensor, second: Tensor) -> None:
        """Outputs (batch, ...) of both models for the same images."""
        first, second = first.flatten(1), second.flatten(1)
        self._same.add(same_guess(first, second))
        self._cosine.add(cosines(first, second))

    def total_over(self, processes: Processes) -> None:
        """From here on of the images of all processes."""
        self._same.total_over(processes)
        self._cosine.total_over(processes)

    @property
    def agreement(self) -> float:
        return self._same.value() or 0.0

    @property
    def cosine(self) -> float:
        return self._cosine.value() or 0.0


def neighbour_agreement(first: Tensor, second: Tensor, chunk: int = 1024) -> float | None:
    """Fraction of rows whose nearest other row, by cosine, is the same in both (n, channels); None for n < 3.

    Two rows have no choice, so at least three are needed to say anything.
    """
    if len(first) < 3:
        return None
    first, second = F.normalize(first.float(), dim=1), F.normalize(second.float(), dim=1)
    same = sum(
        int((_nearest(first, start, chunk) == _nearest(second, start, chunk)).sum())
        for start in range(0, len(first), chunk)
    )
    return same / len(first)


def _nearest(rows: Tensor, start: int, chunk: int) -> Tensor:
    similarity = rows[start : start + chunk] @ rows.T
    own = torch.arange(len(similarity), device=rows.device)
    similarity[own, own + start] = -torch.inf
    return similarity.argmax(dim=1)
