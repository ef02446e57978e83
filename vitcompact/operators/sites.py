"""One layer while its losses are measured, and one while it is solved: what operators share of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from vitcompact.calibration.least_squares import LeastSquares, Split
from vitcompact.calibration.streams import Streams
from vitcompact.layers.attention import CompactAttention
from vitcompact.layers.pointwise import matrix
from vitcompact.models import AttentionSite, FfnSite, Site
from vitcompact.models.cores import core_of, whole_core
from vitcompact.models.layer_scale import output_scale, scaled
from vitcompact.operators.attention_fit import solution_of
from vitcompact.operators.site_statistics import ffn_statistics
from vitcompact.options.surgery import Hallucinate, Init

CURVE_RIDGE = 1e-3


@dataclass(frozen=True)
class Solver:
    """How values are found: least squares and the data-optimal truncation, or the naive ways kept for comparison.

    Attributes:
        init: of factors: `svd` truncates the matrix by itself.
        hallucinate: `copy` gives a head the map of the head that looks most alike, and solves nothing again.
        shared_maps: a kept head's queries and keys are solved for its children as well.
    """

    init: Init = "lstsq"
    hallucinate: Hallucinate = "refit"
    shared_maps: bool = True


class SiteLosses:
    """A layer of the original whose candidates are measured.

    Attributes:
        root: by what errors of its output are weighted, `(channels, channels)`; None: all channels alike.
        branches: of factors in the training form.
    """

    def __init__(self, streams: Streams, site: Site, branches: int = 0) -> None:
        self.streams, self.site, self.branches = streams, site, branches
        self.root = streams.root(site)
        self._hidden: Split | None = None

    @cached_property
    def core(self) -> CompactAttention:
        """An attention layer as a core in which every head keeps its map."""
        assert isinstance(self.site, AttentionSite)
        return whole_core(self.streams.original, self.site)

    @cached_property
    def weight(self) -> Tensor:
        """An FFN's output matrix `(outputs, hidden)` in float64, a LayerScale absorbed."""
        model, site = self.streams.original, _ffn(self.site)
        return scaled(output_scale(model, site.scale), *matrix(model.get_submodule(site.output)))[0]

    def hidden_statistics(self) -> Split:
        """Statistics of an FFN's hidden units, without its output."""
        if self._hidden is None:
            self._hidden = ffn_statistics(self.streams, _ffn(self.site), targets=False)
        return self._hidden

    def output_statistics(self) -> Split:
        """Statistics of an FFN's output before its bias: from those of the hidden units where they were measured."""
        if self._hidden is None:
            return ffn_statistics(self.streams, _ffn(self.site), self.weight, targets=False)
        return self._hidden.derive(lambda problem: problem.map(self.weight.T))

    def weighted(self, target: Tensor) -> Tensor:
        """The plain half of `[output | output + drift]`, weighted by `root`."""
        return in_metric(target[..., : target.shape[-1] // 2], self.root)

    def prior(self) -> Tensor:
        """`proj` as a solution `(channels + 1, outputs)`, weighted by `root`."""
        return in_metric(solution_of(self.core), self.root)

    def loss_after_solving(self, split: Split, prior: Tensor | None) -> float:
        """Expected loss increase if `proj` is solved again from these statistics."""
        error = split.judge.error(split.fit.solve(CURVE_RIDGE, prior))
        return self.loss(error * energy(split.judge))

    def loss(self, mean_squared_error: float) -> float:
        """Expected loss increase of an error, given its mean per token (weighted by `root`)."""
        return mean_squared_error * self.streams.loss_scale(self.site)


def in_metric(target: Tensor, root: Tensor | None) -> Tensor:
    """Outputs `(..., n * channels)`, n side by side, each weighted by `root` as errors of a site's output are."""
    if root is None:
        return target
    return (target.unflatten(-1, (-1, len(root))) @ root.to(target.dtype)).flatten(-2)


def energy(statistics: LeastSquares) -> float:
    """Mean squared target per token."""
    return float(statistics.energy.sum() / statistics.gram[-1, -1])


class SolvedSite:
    """A layer of the converted stream while operators give it structure and values, one after the other.

    Attributes:
        error: held-out error of its output relative to the original's (nan: nothing was fitted).
        rows_per_unknown: tokens that the solution was fitted to, over the unknowns for each output.
        naive: operators copy and nothing is solved again at the end.
    """

    def __init__(self, streams: Streams, site: Site, solver: Solver) -> None:
        self.streams, self.site, self.solver = streams, site, solver
        self.error = float("nan")
        self.rows_per_unknown = float("inf")
        self.naive = False


class SolvedAttention(SolvedSite):
    """An attention layer: its core is narrowed step by step; `proj` and the paths are solved at the end."""

    site: AttentionSite

    @property
    def core(self) -> CompactAttention:
        """What the layer is by now; timm's own module becomes a core with all heads whole."""
        return core_of(self.streams.work, self.site)


class SolvedFfn(SolvedSite):
    """An FFN: its output matrix is solved by each operator for what the one before has left.

    Attributes:
        weight, bias: of the output layer, float64, a LayerScale absorbed.
        split: statistics of the hidden units that are left, once an operator has measured them.
    """

    site: FfnSite

    def __init__(self, streams: Streams, site: FfnSite, solver: Solver) -> None:
        super().__init__(streams, site, solver)
        work = streams.work
        self.weight, self.bias = scaled(output_scale(work, site.scale), *matrix(work.get_submodule(site.output)))
        self.split: Split | None = None
        self.solved = False

    def output_statistics(self) -> Split:
        """Statistics of the output before its bias, for the matrix as it is by now."""
        if self.split is None:
            return ffn_statistics(self.streams, self.site, self.weight)
        return self.split.derive(lambda problem: problem.map(self.weight.T))

    def found(self, error: float, split: Split | None = None) -> None:
        """Note a solution: its held-out error, and the statistics whose rows and unknowns are counted."""
        self.error, self.solved = error, True
        if split is not None:
            self.rows_per_unknown = split.fit.rows / max(split.fit.num_features, 1)


def _ffn(site: Any) -> FfnSite:
    assert isinstance(site, FfnSite)
    return site
