"""Thinner heads: low-rank query-key and value-output products, absorbed into the projections.

Softmax ignores what is equal for all keys of a query, so keys are centred within each image; queries are not. For one
head with second moments `C_q` and `C_k`, `E (q^T M k)^2` is least for the truncated SVD of `C_q^1/2 C_k^1/2`
(queries and keys taken as independent). The value-output product is truncated where the head's own output has
little energy, and `proj` is solved again afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitcompact.calibration.finite import check_finite
from vitcompact.layers.attention import CompactAttention
from vitcompact.layers.narrow import narrow
from vitcompact.models import AttentionSite, FfnSite
from vitcompact.operators.hallucinate import core_of
from vitcompact.plan.schema import Form
from vitcompact.plan.specs import ThinQkSpec, ThinVoSpec

FLOOR = 1e-9
"""Directions with less than this share of the largest eigenvalue count as silent."""


class Thin:
    """Builds an attention core with narrower queries and keys, or values: the first channels of the old ones."""

    def build(
        self, model: nn.Module, site: AttentionSite | FfnSite, spec: ThinQkSpec | ThinVoSpec, form: Form
    ) -> CompactAttention:
        """See `Operator.build`."""
        assert isinstance(site, AttentionSite)
        core = core_of(model, site)
        if isinstance(spec, ThinQkSpec):
            narrow(core, qk_dim=spec.qk_dim)
        else:
            narrow(core, v_dim=spec.v_dim)
        return core


class QkMoments:
    """Streams second moments of queries, and of keys around their mean in each image, per map."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.query: Tensor = torch.zeros(())
        self.key: Tensor = torch.zeros(())

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

    def subspaces(self) -> tuple[Tensor, Tensor, Tensor]:
        """Projections of queries and keys `(maps, qk_dim, qk_dim)`, best column first, and their logit energy.

        The first `r` columns of both give the best product of rank `r`; energies `(maps, qk_dim)` sum to 1 per map.
        """
        root_q, inverse_q = _root(self.query)
        root_k, inverse_k = _root(self.key)
        left, values, right = torch.linalg.svd(root_q @ root_k)
        share = values.sqrt()[:, None]
        energy = values.square()
        energy = energy / energy.sum(-1, keepdim=True).clamp_min(1e-300)
        return inverse_q @ left * share, inverse_k @ right.mT * share, energy


@torch.no_grad()
def set_qk(core: CompactAttention, query: Tensor, key: Tensor, qk_dim: int) -> None:
    """Narrow a core's queries and keys to the first `qk_dim` columns of two projections `(maps, old, columns)`."""
    _project_rows(core, "q", query[..., :qk_dim])
    _project_rows(core, "k", key[..., :qk_dim])
    narrow(core, qk_dim=qk_dim)


@torch.no_grad()
def set_vo(core: CompactAttention, basis: Tensor, covariance: Tensor) -> None:
    """Narrow a core's values with `basis (heads, old, new)`; `proj` gets what is best if heads are independent.

    Args:
        covariance: of the heads' outputs before `proj`, `(heads, old, old)`.
    """
    old, new = basis.shape[1:]
    _project_rows(core, "v", basis)
    blocks = core.proj.weight.double().unflatten(1, (core.num_heads, old))
    back = torch.linalg.pinv(basis.mT @ covariance @ basis, rtol=FLOOR, hermitian=True) @ basis.mT @ covariance
    thin = torch.einsum("ohv,hrv->ohr", blocks, back)
    core.proj.weight.copy_(torch.cat((thin, blocks[..., new:] * 0), dim=-1).flatten(1))
    narrow(core, v_dim=new)


def value_bases(covariance: Tensor, proj: Tensor, root: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Where each head's outputs matter: orthonormal bases `(heads, v_dim, v_dim)`, best column first, and energies.

    Args:
        covariance: of the heads' outputs before `proj`, `(heads, v_dim, v_dim)`, float64.
        proj: `(outputs, heads * v_dim)`.
        root: `(outputs, outputs)` by which output errors are weighted, or None.

    Returns:
        the bases, and `(heads, v_dim)` energies of the outputs along each column.
    """
    weight = proj.double() if root is None else root @ proj.double()
    blocks = weight.unflatten(1, covariance.shape[:2]).permute(1, 2, 0)
    half, _ = _root(covariance)
    _, values, right = torch.linalg.svd(half @ blocks, full_matrices=False)
    basis, _ = torch.linalg.qr(blocks @ right.mT, mode="complete")
    return basis, values.square()


def _project_rows(core: CompactAttention, part: str, basis: Tensor) -> None:
    """Replace every head's leading rows of a projection by `basis (heads, old, new)` of them; the rest is cut later."""
    heads, old, new = basis.shape
    for rows in core.rows(part):
        if rows is not None:
            values = rows.double().reshape(heads, old, -1)
            rows.copy_(torch.cat((basis.mT @ values, values[:, new:]), dim=1).reshape(rows.shape))


def _root(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square root of second moments `(..., n, n)` and its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(moment)
    floor = values[..., -1:].clamp_min(0) * FLOOR
    alive = values > floor
    roots = values.clamp_min(0).sqrt() * alive
    inverse = torch.where(alive, 1 / values.clamp_min(1e-300).sqrt(), torch.zeros_like(values))
    return (vectors * roots[..., None, :]) @ vectors.mT, (vectors * inverse[..., None, :]) @ vectors.mT
