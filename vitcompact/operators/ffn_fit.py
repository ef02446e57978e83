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
    drifted = split.fit.outputs(outputs, 2 * outputs)
    choice = min(RIDGES, key=lambda candidate: judge.error(drifted.solve(candidate, identity)))
    small, large = split.fit.outputs(0, outputs).solve(choice, identity), drifted.solve(choice, identity)
    mixes = {part: small + part * (large - small) for part in DRIFT_SHARES}
    best = min(mixes, key=lambda part: judge.error(mixes[part]))
    refitted_basis, refitted = _truncate(split.fit, mixes[best], rank)
    if judge.error(refitted) < error:
        basis, reduced, error = refitted_basis, refitted, judge.error(refitted)
        ridge, share = choice, best
    # y -> y M is rank r: M = A U^T with U the basis, A = M U
    reduce = (reduced[:-1] @ basis).T @ weight
    return FfnFit(Factors(reduce, basis, reduced[-1]), error, ridge, share)


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
