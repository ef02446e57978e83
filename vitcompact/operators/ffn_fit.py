"""Closed-form factors of an FFN's output matrix from the statistics of its own outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitcompact.operators.attention_fit import DRIFT_SHARES, RIDGES
from vitcompact.operators.factorize import Factors
from vitcompact.operators.statistics import LeastSquares, Split


@dataclass(frozen=True)
class FfnFit:
    """Solved factors with the held-out error and what held-out images chose (`ridge` None: no refit)."""

    factors: Factors
    error: float
    ridge: float | None
    drift_share: float
    energy: float


def fit(split: Split, weight: Tensor, bias: Tensor, rank: int) -> FfnFit:
    """Reduced-rank regression within the span of the original matrix.

    With `y = W h` the layer's output before its bias, every candidate is `U V h = U Q y`: the data-optimal
    truncation is `U = Q^T` the leading eigenvectors of `cov(y)`, and a refit also takes back drift of the stream.
    Only `(outputs x outputs)` matrices are needed, never one of the hidden width.

    Args:
        split: features `y (.., outputs)`, target `[output | output + drift]`.
        weight, bias: of the original layer, float64, a LayerScale absorbed.
    """
    outputs = weight.shape[0]
    judge = split.judge.outputs(outputs, 2 * outputs)
    identity = torch.cat((torch.eye(outputs, dtype=weight.dtype, device=weight.device), bias[None]))
    basis, reduced = _truncate(split.fit, identity, rank)
    error = judge.error(reduced)
    ridge: float | None = None
    share = 0.0
    full: dict[tuple[float, float], Tensor] = {}
    for candidate in RIDGES:
        maps = [split.fit.outputs(i * outputs, (i + 1) * outputs).solve(candidate, identity) for i in (0, 1)]
        full |= {(candidate, part): maps[0] + part * (maps[1] - maps[0]) for part in DRIFT_SHARES}
    choice = min(full, key=lambda key: judge.error(full[key]))
    refitted_basis, refitted = _truncate(split.fit, full[choice], rank)
    if judge.error(refitted) < error:
        basis, reduced, error = refitted_basis, refitted, judge.error(refitted)
        ridge, share = choice
    # y -> y M is rank r: M = A U^T with U the basis, A = M U
    reduce = (reduced[:-1] @ basis).T @ weight
    energy = _energy(split.fit, rank)
    return FfnFit(Factors(reduce, basis, reduced[-1]), error, ridge, share, energy)


def _truncate(statistics: LeastSquares, full: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best rank-`rank` approximation of `y M` over the data; its basis and the map with intercept."""
    covariance, mean = _centred(statistics)
    slope = full[:-1]
    _, vectors = torch.linalg.eigh(slope.T @ covariance @ slope)
    basis = vectors[:, -rank:].flip(1)
    reduced = slope @ basis @ basis.T
    intercept = full[-1] + mean @ (slope - reduced)
    return basis, torch.cat((reduced, intercept[None]))


def _centred(statistics: LeastSquares) -> tuple[Tensor, Tensor]:
    rows = statistics.gram[-1, -1]
    mean = statistics.gram[-1, :-1] / rows
    return statistics.gram[:-1, :-1] / rows - torch.outer(mean, mean), mean


def _energy(statistics: LeastSquares, rank: int) -> float:
    values = torch.linalg.eigvalsh(_centred(statistics)[0]).clamp_min(0)
    return float(values[-rank:].sum() / values.sum().clamp_min(1e-300))
