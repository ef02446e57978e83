"""Closed forms against what they are short for, worked out another way."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from vitcompact.calibration.least_squares import LeastSquares
from vitcompact.layers.attention import CompactAttention, HeadLayout
from vitcompact.operators import thin
from vitcompact.operators.neurons import STEP, removal_order
from vitcompact.operators.pairing import num_hallucinated


def rows(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("heads", range(1, 25))
def test_head_counts_are_exact_floors(heads: int) -> None:
    """`floor(ratio * H)` of the ratio as it was written, also where its nearest float is less; at most `H - 1`."""
    for kept in range(heads):
        share = Fraction(heads - kept, heads)
        assert num_hallucinated(float(share), heads) == min(heads - kept, heads - 1)
    for percent in range(1, 100):
        wanted = min(Fraction(percent, 100) * heads // 1, heads - 1)
        assert num_hallucinated(percent / 100, heads) == wanted, percent


def test_every_removal_is_the_cheapest_of_its_moment() -> None:
    """The surgeon's rule by hand: after each group, errors of all that are left are worked out anew, one by one."""
    hidden, weight = (rows(0, 500, 24) @ rows(1, 24, 24)).relu(), rows(2, 6, 24)
    statistics = LeastSquares()
    statistics.add(hidden, hidden @ weight.T)
    removal = removal_order(statistics, weight, keep=24 - 2 * STEP, sizes=(24 - STEP,), judge=statistics)
    centred, target = hidden - hidden.mean(0), (hidden - hidden.mean(0)) @ weight.T
    left = list(range(24))
    for group in removal.order[: 2 * STEP].split(STEP):
        costs = {}
        fitted = torch.linalg.lstsq(centred[:, left], target).solution
        base = centred[:, left] @ fitted
        for unit in left:
            rest = [other for other in left if other != unit]
            costs[unit] = float(
                (centred[:, rest] @ torch.linalg.lstsq(centred[:, rest], base).solution - base).square().sum()
            )
        assert sorted(group.tolist()) == sorted(sorted(left, key=costs.__getitem__)[:STEP])
        left = [unit for unit in left if unit not in group.tolist()]


def test_energies_of_narrowed_values_are_those_of_the_outputs() -> None:
    """Along each column: the eigenvalues of the covariance of what a head adds to the output."""
    heads, width, outputs = 3, 5, 7
    half = rows(0, heads, width, width)
    covariance, proj = half @ half.mT, rows(1, outputs, heads * width)
    bases, energies = thin.value_bases(covariance, proj)
    for head in range(heads):
        weight = proj[:, head * width : (head + 1) * width]
        added = torch.linalg.eigvalsh(weight @ covariance[head] @ weight.T).flip(0)[:width]
        torch.testing.assert_close(energies[head], added, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(bases[head].T @ bases[head], torch.eye(width, dtype=torch.float64))
    root = rows(2, outputs, outputs)
    weighted = thin.value_bases(covariance, proj, root)[1]
    torch.testing.assert_close(weighted, thin.value_bases(covariance, root @ proj)[1], rtol=1e-8, atol=1e-8)


def test_narrowed_values_lose_what_their_energies_say() -> None:
    """The error of a head's output, over samples with exactly that covariance, is the sum of the energies cut off."""
    made = CompactAttention(24, HeadLayout((0, 1, 2), ((), (), ())), 8, 6).double().eval().requires_grad_(False)
    made.proj.weight.requires_grad_(False)
    samples = rows(3, 3, 500, 6) @ rows(4, 3, 6, 6)
    covariance = samples.mT @ samples
    old = made.proj.weight.double().unflatten(1, (3, 6)).clone()
    bases, energies = thin.value_bases(covariance, made.proj.weight)
    thin.set_vo(made, bases[..., :2], covariance)
    new = made.proj.weight.detach().unflatten(1, (3, 2))
    for head in range(3):
        wanted = samples[head] @ old[:, head].T
        error = (samples[head] @ bases[head][:, :2] @ new[:, head].T - wanted).square().sum()
        assert float(error) == pytest.approx(float(energies[head, 2:].sum()), rel=1e-6)
