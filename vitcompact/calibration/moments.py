"""Second moments of queries, keys and the heads' outputs, and where little is lost of them."""

from __future__ import annotations

import torch
from torch import Tensor

from vitcompact.calibration.finite import check_finite
from vitcompact.calibration.sums import summed
from vitcompact.calibration.ties import signs
from vitcompact.utils.processes import Processes

FLOOR = 1e-9
"""Directions with less than this share of the largest eigenvalue count as silent."""


class QkMoments:
    """Streams second moments of queries, and of keys around their mean in each image, per map."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.query: Tensor = torch.zeros((), dtype=torch.float64)
        self.key: Tensor = torch.zeros((), dtype=torch.float64)

    def add(self, q: Tensor, k: Tensor) -> None:
        """Add `q (batch, maps, queries, qk_dim)` and `k (batch, maps, keys, qk_dim)`.

        Raises:
            DataError: values that are not finite; the message names the layer.
        """
        q, k = q.double(), k.double()
        k = k - k.mean(dim=2, keepdim=True)
        query, key = (torch.einsum("bhni,bhnj->hij", t, t) for t in (q, k))
        check_finite(self.name, query, key)
        self.query, self.key = self.query + query, self.key + key

    def total_over(self, processes: Processes) -> None:
        """See `Sums`."""
        self.query, self.key = summed((self.query, self.key), processes)

    def subspaces(self) -> tuple[Tensor, Tensor, Tensor]:
        """Projections of queries and keys `(maps, qk_dim, qk_dim)`, best column first, and their logit energy.

        The first `r` columns of both give the best product of rank `r`; energies `(maps, qk_dim)` sum to 1 per map.
        """
        root_q, inverse_q = root_of(self.query)
        root_k, inverse_k = root_of(self.key)
        left, values, right = torch.linalg.svd(root_q @ root_k)
        share = values.sqrt()[:, None]
        energy = values.square()
        energy = energy / energy.sum(-1, keepdim=True).clamp_min(1e-300)
        share = share * signs(right.mT)[..., None, :]
        return inverse_q @ left * share, inverse_k @ right.mT * share, energy


def root_of(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square root of second moments `(..., n, n)` and its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(moment)
    floor = values[..., -1:].clamp_min(0) * FLOOR
    alive = values > floor
    roots = values.clamp_min(0).sqrt() * alive
    inverse = torch.where(alive, 1 / values.clamp_min(1e-300).sqrt(), torch.zeros_like(values))
    return (vectors * roots[..., None, :]) @ vectors.mT, (vectors * inverse[..., None, :]) @ vectors.mT
