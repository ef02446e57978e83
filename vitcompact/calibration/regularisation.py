"""What held-out images decide in every closed form: the ridge, and how much of the stream's drift is taken back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vitcompact.calibration.least_squares import LeastSquares
from vitcompact.calibration.ties import least

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Penalties tried, as a fraction of the features' mean energy."""
DRIFT_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the residual stream's drift that the target may take back."""


@dataclass(frozen=True)
class Choice:
    """A solution `(features + 1, outputs)`, its held-out error against `output + drift`, and what was chosen."""

    solution: Tensor
    error: float
    ridge: float
    drift_share: float


def best_ridge(problem: LeastSquares, judge: LeastSquares, prior: Tensor | None) -> float:
    """The penalty of least held-out error."""
    return least(RIDGES, lambda ridge: judge.error(problem.solve(ridge, prior)))


def share_drift(
    plain: LeastSquares, drifted: LeastSquares, judge: LeastSquares, ridge: float, prior: Tensor | None
) -> Choice:
    """Mix the solutions for the plain and the drifted target as held-out images say."""
    small, large = plain.solve(ridge, prior), drifted.solve(ridge, prior)
    mixes = {share: small + share * (large - small) for share in DRIFT_SHARES}
    errors = {share: judge.error(mix) for share, mix in mixes.items()}
    share = least(errors, errors.__getitem__)
    return Choice(mixes[share], errors[share], ridge, share)


def choose(fit: LeastSquares, judge: LeastSquares, prior: Tensor | None) -> Choice:
    """Ridge, then drift share, for statistics whose target is `[output | output + drift]`."""
    outputs = fit.cross.shape[1] // 2
    judge = judge.outputs(outputs, 2 * outputs)
    plain, drifted = fit.outputs(0, outputs), fit.outputs(outputs, 2 * outputs)
    return share_drift(plain, drifted, judge, best_ridge(drifted, judge, prior), prior)
