"""Closed-form values of hallucinated heads: output projection, identity and mean paths, by least squares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitcompact.calibration.least_squares import LeastSquares, Split
from vitcompact.calibration.regularisation import best_ridge, share_drift
from vitcompact.layers.attention import CompactAttention
from vitcompact.layers.calls import AttentionInputs
from vitcompact.layers.masks import allowed_mean
from vitcompact.layers.no_projection import NoProjection

SWEEPS = 3
"""Alternations between `proj` and the paths' coefficients; the error has settled by then."""
PATH_RIDGE = 1e-3


@dataclass(frozen=True)
class AttentionFit:
    """Solved values, float64.

    Attributes:
        weight, bias: of `proj`, `(outputs, heads * v_dim)` and `(outputs,)`, a LayerScale absorbed.
        paths: coefficients per value channel by term, `{"identity": (channels,), "mean": (channels,)}`.
        error: held-out residual energy over the target's.
        ridge, drift_share: what the held-out images chose.
    """

    weight: Tensor
    bias: Tensor
    paths: dict[str, Tensor]
    error: float
    ridge: float
    drift_share: float

    @torch.no_grad()
    def load_into(self, core: CompactAttention) -> None:
        """Copy the values into a core."""
        core.load_projection(self.weight, self.bias)
        of_path = {"identity": core.beta, "mean": core.gamma}
        for term, values in self.paths.items():
            coefficients = of_path[term]
            assert coefficients is not None  # the paths solved are those that the core has
            coefficients.copy_(values)


def features(core: CompactAttention, inputs: AttentionInputs, terms: tuple[str, ...]) -> Tensor:
    """The inputs of `proj` without the paths that are solved with it, then each path's own contribution.

    Shape `(batch, tokens, (1 + terms) * channels)`. A filter of the values is part of the first.

    With a norm between the heads and `proj` the paths are not additive: then there is only the first part.
    """
    q, k, v = core.project(inputs)
    plain = core.inner_norm(core.beside(core.attend(q, k, v, inputs), v, inputs))
    plain = plain if core.conv is None else plain + core.conv(v, inputs.grid)
    return _at_proj(core, inputs, [plain, *_of_paths(inputs, v, q.shape[-2], terms)])


def path_features(core: CompactAttention, inputs: AttentionInputs, v: Tensor, terms: tuple[str, ...]) -> Tensor:
    """Only what paths of an aligned core contribute, of values computed before: `(batch, tokens, terms * channels)`."""
    return _at_proj(core, inputs, _of_paths(inputs, v, v.shape[-2], terms))


def _of_paths(inputs: AttentionInputs, v: Tensor, queries: int, terms: tuple[str, ...]) -> list[Tensor]:
    sources = {"identity": lambda: v, "mean": lambda: allowed_mean(v, inputs, queries)}
    return [sources[term]() for term in terms]


def _at_proj(core: CompactAttention, inputs: AttentionInputs, parts: list[Tensor]) -> Tensor:
    """Outputs of heads side by side, as `proj` gets them."""
    if core.gate is not None:
        gate = core.gate(inputs.x).sigmoid()
        parts = [part * gate for part in parts]
    return core.call.restore(torch.cat(parts, dim=-1), inputs)


def solution_of(core: CompactAttention) -> Tensor:
    """`proj` as it is, in the form of a solution `(channels + 1, outputs)`, float64."""
    return torch.cat((core.proj.weight.T, core.proj.bias[None])).double()


def fit(split: Split, channels: int, terms: tuple[str, ...], prior: Tensor | None = None) -> AttentionFit:
    """Solve from statistics whose target is `[output | output + drift]`.

    `proj` and the paths' coefficients are solved in turn: for given coefficients the features are
    `F + sum_t coefficient_t * F_t`, for a given `proj` the coefficients have normal equations of their own. Ridge
    (before the paths) and drift share (after them) are chosen by the error against `output + drift` on held-out images.

    Args:
        channels: `heads * v_dim`.
        terms: which paths follow `F` in the statistics' features.
        prior: `(channels + 1, outputs)` towards which `proj` is regularised, or None for zero.
    """
    outputs = split.fit.cross.shape[1] // 2
    judge = split.judge.outputs(outputs, 2 * outputs)
    plain, full = split.fit.outputs(0, outputs), split.fit.outputs(outputs, 2 * outputs)
    paths = torch.zeros(len(terms), channels, dtype=torch.float64, device=split.fit.gram.device)
    ridge = best_ridge(_project(full, paths), _project(judge, paths), prior)
    for _ in range(SWEEPS if terms else 0):
        solution = _project(full, paths).solve(ridge, prior)
        paths = _solve_paths(full, solution, channels, len(terms))
    best = share_drift(_project(plain, paths), _project(full, paths), _project(judge, paths), ridge, prior)
    named = dict(zip(terms, paths, strict=True))
    return AttentionFit(best.solution[:-1].T, best.solution[-1], named, best.error, ridge, best.drift_share)


def fit_heads(split: Split, proj: NoProjection) -> AttentionFit:
    """Each head's own outputs from its own values, where there is no `proj`: blocks that go into V, and a bias."""
    channels, size = proj.in_features, proj.v_dim
    weight = torch.zeros(channels, channels, dtype=torch.float64, device=proj.bias.device)
    bias, prior = weight.new_zeros(channels), torch.eye(size + 1, size, dtype=torch.float64, device=weight.device)
    found, energy = [], []
    for place, head in enumerate(proj.layout.heads):
        rows, columns = (slice(i * size, (i + 1) * size) for i in (head, place))
        index = torch.arange(columns.start, columns.stop, device=weight.device)
        fit, judge = split.fit.select(index), split.judge.select(index)
        full, judge = (problem.outputs(channels + rows.start, channels + rows.stop) for problem in (fit, judge))
        plain = fit.outputs(rows.start, rows.stop)
        best = share_drift(plain, full, judge, best_ridge(full, judge, prior), prior)
        weight[rows, columns], bias[rows] = best.solution[:-1].T, best.solution[-1]
        found.append(best)
        energy.append(float(judge.energy.sum()))
    error = sum(best.error * share for best, share in zip(found, energy, strict=True)) / max(sum(energy), 1e-300)
    return AttentionFit(weight, bias, {}, error, found[0].ridge, found[0].drift_share)


def _project(statistics: LeastSquares, paths: Tensor) -> LeastSquares:
    """The problem for `F + sum_t paths[t] * F_t` given statistics of `[F, F_1, ...]`."""
    eye = torch.eye(paths.shape[1], dtype=paths.dtype, device=paths.device)
    return statistics.map(torch.cat([eye, *(row.diag() for row in paths)]))


def _solve_paths(statistics: LeastSquares, solution: Tensor, channels: int, count: int) -> Tensor:
    """Coefficients `(count, channels)` of the paths for a given `proj`.

    The output is `F W + b + sum_tj c_tj F_tj w_j`; its normal equations are `(F_t^T F_s) * (W W^T)` entry by entry.
    """
    weight = solution[:-1]
    columns = slice(channels, channels * (1 + count))
    index = torch.cat((torch.arange(channels), torch.tensor([statistics.num_features])))
    system = statistics.gram[columns, columns] * (weight @ weight.T).repeat(count, count)
    residual = statistics.cross[columns] - statistics.gram[columns][:, index] @ solution
    right = (residual * weight.repeat(count, 1)).sum(1)
    penalty = PATH_RIDGE * system.diagonal().mean().clamp_min(1e-300)
    system = system + penalty * torch.eye(system.shape[0], dtype=system.dtype, device=system.device)
    solved: Tensor = torch.linalg.solve(system, right)
    return solved.reshape(count, channels)
