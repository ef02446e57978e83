"""Additive sufficient statistics of a linear least-squares problem, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vitcompact.calibration.finite import check_finite
from vitcompact.calibration.held_out import Parts
from vitcompact.calibration.sums import summed
from vitcompact.utils.processes import Processes

CHUNK = 1024
"""Rows that are in float64 at a time."""
BLOCK = 192
"""Columns of a Gram matrix that are multiplied at a time on CPUs."""


def add_gram(gram: Tensor, rows: Tensor) -> None:
    """`gram += rows^T rows` in place, `gram (columns, columns)` symmetric, `rows (.., columns)`.

    A CPU multiplies what is on and above the diagonal and copies the rest: two thirds of the time at 1,500 columns.
    """
    columns = len(gram)
    block = BLOCK if gram.device.type == "cpu" else columns
    for start in range(0, columns, block):
        chosen = slice(start, start + block)
        gram[chosen, start:].addmm_(rows[:, chosen].T, rows[:, start:])
        square = gram[chosen, chosen]  # some CPUs round a product and its transpose differently
        square.copy_(square.tril() + square.tril(-1).T)
        gram[start + block :, chosen] = gram[chosen, start + block :].T


class LeastSquares:
    """Streams rows `(phi, target)` and solves `min |phi W + b - target|^2` with ridge, any subset of columns later.

    Keeps only `[phi 1]^T [phi 1]`, `[phi 1]^T target` and `|target|^2` per output. The last row of a solution
    `(features + 1, outputs)` is the intercept.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.rows = 0
        self.gram: Tensor = torch.empty(0, dtype=torch.float64)
        self.cross: Tensor = torch.empty(0, dtype=torch.float64)
        self.energy: Tensor = torch.empty(0, dtype=torch.float64)

    def add(self, phi: Tensor, target: Tensor, weights: Tensor | None = None) -> None:
        """Add rows: `phi (..., features)`, `target (..., outputs)`, how much each counts `(...)` (None: all alike).

        Raises:
            DataError: activations that are not finite; the message names the layer.
        """
        phi, target = phi.flatten(0, -2), target.flatten(0, -2)
        if self.rows == 0:
            features, outputs = phi.shape[1] + 1, target.shape[1]
            self.gram = phi.new_zeros(features, features, dtype=torch.float64)
            self.cross = phi.new_zeros(features, outputs, dtype=torch.float64)
            self.energy = phi.new_zeros(outputs, dtype=torch.float64)
        for start in range(0, len(phi), CHUNK):  # float64 copies of a few rows, sums in place: the peak is the sums
            chosen = slice(start, start + CHUNK)
            rows, wanted = F.pad(phi[chosen].double(), (0, 1), value=1.0), target[chosen].double()
            if weights is not None:
                roots = weights.flatten()[chosen].double().sqrt()[:, None]
                rows, wanted = rows * roots, wanted * roots
            add_gram(self.gram, rows)
            self.cross.addmm_(rows.T, wanted)
            self.energy.add_(wanted.square().sum(0))
        check_finite(self.name, self.gram.diagonal(), self.energy)
        self.rows += len(phi)

    def total_over(self, processes: Processes) -> None:
        """See `Sums`."""
        self.gram, self.cross, self.energy = summed((self.gram, self.cross, self.energy), processes)
        if not self.cross.numel():  # without targets a process that has none of the rows knows no shape
            self.cross = self.gram.new_zeros(len(self.gram), 0)
        self.rows = round(processes.sums(self.rows)[0])

    @property
    def num_features(self) -> int:
        """Columns of `phi`, without the intercept."""
        return self.gram.shape[0] - 1

    def centred(self) -> tuple[Tensor, Tensor]:
        """Covariance `(features, features)` and mean `(features,)` of the rows, by their weights."""
        total = self.gram[-1, -1]
        mean = self.gram[-1, :-1] / total
        return (self.gram[:-1, :-1] / total).addr_(mean, mean, alpha=-1), mean

    def select(self, columns: Tensor) -> LeastSquares:
        """The same problem with some of the features (and the intercept)."""
        index = torch.cat((columns, columns.new_tensor([self.num_features])))
        return self._derived(self.gram[index][:, index], self.cross[index])

    def map(self, matrix: Tensor) -> LeastSquares:
        """The problem for features `phi @ matrix`, `matrix (features, new_features)`; the intercept stays."""
        full = torch.zeros(matrix.shape[0] + 1, matrix.shape[1] + 1, dtype=torch.float64, device=self.gram.device)
        full[:-1, :-1] = matrix
        full[-1, -1] = 1.0
        return self._derived(full.T @ self.gram @ full, full.T @ self.cross)

    def outputs(self, start: int, stop: int) -> LeastSquares:
        """The same problem for some of the target's columns."""
        derived = self._derived(self.gram, self.cross[:, start:stop])
        derived.energy = self.energy[start:stop]
        return derived

    def solve(self, ridge: float, prior: Tensor | None = None) -> Tensor:
        """`argmin |phi W + b - T|^2 + penalty |W - prior|^2`, `(features + 1, outputs)`.

        Args:
            ridge: penalty as a fraction of the features' mean energy; the intercept is free.
            prior: what W is drawn to, zero if None.
        """
        size = self.gram.shape[0]
        penalty = torch.full((size,), ridge, dtype=torch.float64, device=self.gram.device)
        penalty *= self.gram.diagonal()[:-1].mean().clamp_min(1e-300)
        penalty[-1] = self.gram[-1, -1] * 1e-12
        right = self.cross if prior is None else self.cross + penalty[:, None] * prior
        system = self.gram.clone()
        system.diagonal().add_(penalty)
        factor, info = torch.linalg.cholesky_ex(system)
        if int(info) == 0:
            return torch.cholesky_solve(right, factor)
        values, vectors = torch.linalg.eigh(system)
        inverse = torch.where(values > values[-1] * 1e-12, 1.0 / values, torch.zeros_like(values))
        return vectors @ (inverse[:, None] * (vectors.T @ right))

    def error(self, solution: Tensor) -> float:
        """Residual energy of `solution` over these rows, relative to the target's energy."""
        energy = self.energy.sum()
        residual = (solution * (self.gram @ solution)).sum() - 2 * (solution * self.cross).sum() + energy
        return float(residual.clamp_min(0) / energy.clamp_min(1e-300))

    def _derived(self, gram: Tensor, cross: Tensor) -> LeastSquares:
        derived = LeastSquares(self.name)
        derived.gram, derived.cross, derived.energy, derived.rows = gram, cross, self.energy, self.rows
        return derived


@dataclass
class Split:
    """The same statistics over the images that fit and over those held out for choices."""

    fit: LeastSquares
    held_out: LeastSquares

    @classmethod
    def empty(cls, name: str) -> Split:
        """Statistics of no rows yet."""
        return cls(LeastSquares(name), LeastSquares(name))

    def add(self, phi: Tensor, target: Tensor, parts: Parts, weights: Tensor | None = None) -> None:
        """Add a batch `(images, ..., features)`; `parts` says which of its images are held out."""
        weighed = (
            [None] * len(parts.held) if weights is None else [weights[part] for _, part in parts.slices(len(weights))]
        )
        for (held, rows), some in zip(parts.slices(len(phi)), weighed, strict=True):
            (self.held_out if held else self.fit).add(phi[rows], target[rows], some)

    def total_over(self, processes: Processes) -> None:
        """See `Sums`."""
        self.fit.total_over(processes)
        self.held_out.total_over(processes)

    def derive(self, change: Callable[[LeastSquares], LeastSquares]) -> Split:
        """The same change of problem on both sides."""
        return Split(change(self.fit), change(self.held_out) if self.held_out.rows else self.held_out)

    @property
    def judge(self) -> LeastSquares:
        """What choices are made on: the held-out rows, or the fitting ones where none were held out."""
        return self.held_out if self.held_out.rows else self.fit


class Moments:
    """Mean and covariance of rows, streamed in float64."""

    def __init__(self, name: str = "") -> None:
        self.name, self.rows = name, 0
        self.total: Tensor = torch.empty(0, dtype=torch.float64)
        self.gram: Tensor = torch.empty(0, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Add `rows (..., channels)`.

        Raises:
            DataError: values that are not finite; the message names the layer.
        """
        rows = rows.flatten(0, -2).double()
        if self.rows == 0:
            self.total = rows.new_zeros(rows.shape[1])
            self.gram = rows.new_zeros(rows.shape[1], rows.shape[1])
        self.total.add_(rows.sum(0))
        add_gram(self.gram, rows)
        check_finite(self.name, self.gram.diagonal())
        self.rows += rows.shape[0]

    def total_over(self, processes: Processes) -> None:
        """See `Sums`."""
        self.total, self.gram = summed((self.total, self.gram), processes)
        self.rows = round(processes.sums(self.rows)[0])

    @property
    def mean(self) -> Tensor:
        """`(channels,)`."""
        return self.total / self.rows

    @property
    def covariance(self) -> Tensor:
        """`(channels, channels)`, of the population."""
        return self.gram / self.rows - torch.outer(self.mean, self.mean)
