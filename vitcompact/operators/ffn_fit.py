"""Closed-form factors of an FFN's output matrix from the statistics of its own outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitcompact.calibration.least_squares import LeastSquares, Split
from vitcompact.calibration.regularisation import choose
from vitcompact.calibration.ties import lower, signs
from vitcompact.operators.factors import Factors


@dataclass(frozen=True)
class FfnFit:
    """Solved factors with the held-out error and what held-out images chose (`ridge` None: no refit)."""

    factors: Factors
    error: float
    ridge: float | None
    drift_share: float


def fit(split: Split, weight: Tensor, bias: Tensor, rank: int, root: Tensor | None = None) -> FfnFit:
    """Reduced-rank regression within the span of the original matrix.

    With `y = W h` the layer's output before its bias, every candidate is `U V h = U Q y`: the data-optimal
    truncation is `U = R^-1 E`, `Q = E^T R`, with `E` the leading eigenvectors of `R cov(y) R` where `R` weights
    errors, and a refit also takes back drift of the stream. Only `(outputs x outputs)` matrices are needed, never one
    of the hidden width.

    Args:
        split: features `y (.., outputs)`, target `[output | output + drift]`.
        weight, bias: of the original layer, float64, a LayerScale absorbed.
        root: symmetric `(outputs, outputs)` by which errors are weighted for the choice of directions, or None.
    """
    outputs = weight.shape[0]
    judge = split.judge.outputs(outputs, 2 * outputs)
    identity = torch.cat((torch.eye(outputs, dtype=weight.dtype, device=weight.device), bias[None]))
    left, right, reduced = _truncate(split.fit, identity, rank, root)
    error = judge.error(reduced)
    ridge: float | None = None
    share = 0.0
    best = choose(split.fit, split.judge, identity)
    other_left, other_right, refitted = _truncate(split.fit, best.solution, rank, root)
    if lower(judge.error(refitted), than=error):
        left, right, reduced, error = other_left, other_right, refitted, judge.error(refitted)
        ridge, share = best.ridge, best.drift_share
    return FfnFit(Factors(left.T @ weight, right, reduced[-1]), error, ridge, share)


def _truncate(statistics: LeastSquares, full: Tensor, rank: int, root: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The best rank-`rank` approximation `y A U^T` of `y M` over the data: `A`, `U`, and the map with its intercept."""
    covariance, mean = statistics.centred()
    slope = full[:-1]
    weighted = slope if root is None else slope @ root
    _, vectors = torch.linalg.eigh(weighted.T @ covariance @ weighted)
    basis = vectors[:, -rank:].flip(1)
    basis = basis * signs(basis)
    left, back = weighted @ basis, basis if root is None else torch.linalg.solve(root, basis)
    reduced = left @ back.T
    intercept = full[-1] + mean @ (slope - reduced)
    return left, back, torch.cat((reduced, intercept[None]))
