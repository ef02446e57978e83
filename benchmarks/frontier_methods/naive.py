"""What surgery without calibration does: heads copied from the one with the most similar map, plain SVD of weights."""

from __future__ import annotations

from typing import Literal

from torch import nn

import vitcompact
from vitcompact.errors import UsageError

from .common import Calibration, macs_of, nearest

STEPS = 48
"""Shares of heads and ranks are tried in steps of one 48th, in which the halves and sixths of 6 and 12 heads fall."""

Only = Literal["heads", "ffn"] | None


def plain_svd(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """FFN output matrices truncated by their own singular values."""
    return _naive(model, calibration, target, "ffn")


def copied_heads(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """Maps of some heads copied from the head of the same layer whose map is most similar."""
    return _naive(model, calibration, target, "heads")


def copied_heads_and_svd(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """Both, at the shares at which `ours.pair` does it with least squares."""
    return _naive(model, calibration, target, None)


def shares(model: nn.Module, target: float, only: Only = None) -> tuple[float, float]:
    """`ratio` and `rank_ratio` (one minus the ratio) whose folded model comes closest to the target.

    Raises:
        UnreachableError: even the largest share leaves too much.
    """
    original = macs_of(model)

    def macs(step: int) -> int:
        try:
            report = vitcompact.analyze(model, ratio=step / STEPS, rank_ratio=1 - step / STEPS, only=only)
        except UsageError:  # a share too small to change anything
            return original
        return report.predicted.macs

    step = nearest(macs, range(1, STEPS), original, target)
    return step / STEPS, 1 - step / STEPS


def _naive(model: nn.Module, calibration: Calibration, target: float, only: Only) -> nn.Module:
    ratio, rank_ratio = shares(model, target, only)
    return vitcompact.convert(
        model,
        ratio=ratio,
        rank_ratio=rank_ratio,
        images=calibration.images,
        init="svd",
        hallucinate="copy",
        only=only,
        seed=calibration.seed,
    )
