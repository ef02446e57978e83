"""Thinner heads: low-rank query-key and value-output products, absorbed into the projections.

Softmax ignores what is equal for all keys of a query, so keys are centred within each image; queries are not. For one
head with second moments `C_q` and `C_k`, `E (q^T M k)^2` is least for the truncated SVD of `C_q^1/2 C_k^1/2`
(queries and keys taken as independent). The value-output product is truncated where the head's own output has
little energy, and `proj` is solved again afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vitcompact.calibration.least_squares import Split
from vitcompact.calibration.moments import FLOOR, QkMoments, root_of
from vitcompact.calibration.ties import signs
from vitcompact.layers.attention import CompactAttention
from vitcompact.layers.narrow import narrow
from vitcompact.models import AttentionSite, Site
from vitcompact.models.cores import core_of, whole_core
from vitcompact.models.site_cost import Sizes
from vitcompact.operators import attention_fit
from vitcompact.operators.base import Candidate, Operator
from vitcompact.operators.site_statistics import head_covariance, qk_moments
from vitcompact.operators.sites import SiteLosses, SolvedAttention, SolvedSite
from vitcompact.operators.steps import MULTIPLE
from vitcompact.plans.schema import Form
from vitcompact.plans.specs import LayerKind, OperatorSpec, at_least

CURVE_IMAGES = 64
"""Images on which attention is run again for every width of its queries and keys."""


@dataclass(frozen=True)
class ThinQkSpec(OperatorSpec):
    """Narrower queries and keys of every softmax map: `Q_h K_h^T` of rank `qk_dim`."""

    op: ClassVar[str] = "thin-qk"
    kind: ClassVar[LayerKind] = "attention"
    qk_dim: int

    def __post_init__(self) -> None:
        at_least(self, qk_dim=1)


@dataclass(frozen=True)
class ThinVoSpec(OperatorSpec):
    """Narrower values of every head: the value-output product `W_v^h W_o^h` of rank `v_dim`."""

    op: ClassVar[str] = "thin-vo"
    kind: ClassVar[LayerKind] = "attention"
    v_dim: int

    def __post_init__(self) -> None:
        at_least(self, v_dim=1)


class ThinQk(Operator[ThinQkSpec]):
    """Narrows queries and keys to the directions in which logits have most energy."""

    spec = ThinQkSpec
    title = "narrower queries and keys"
    description = "queries and keys are narrower"
    source = "truncated SVD of the whitened query-key product"
    in_channels = True

    def build(self, model: nn.Module, site: Site, spec: ThinQkSpec, form: Form) -> CompactAttention:
        """See `Operator.build`: the first channels of the old ones."""
        core = core_of(model, _attention(site))
        narrow(core, qk_dim=spec.qk_dim)
        return core

    def sizes(self, model: nn.Module, site: Site) -> list[int]:
        """Widths of queries and keys."""
        core = whole_core(model, _attention(site))
        return [] if core.fixed_qk_dim is not None else list(range(MULTIPLE, core.qk_dim, MULTIPLE))

    def size_of(self, spec: ThinQkSpec) -> int:
        """Channels of each query and key."""
        return spec.qk_dim

    def resized(self, size: int, sizes: Sizes) -> Sizes:
        """Queries and keys of that width."""
        return {**sizes, "qk": size}

    def losses(self, layer: SiteLosses, sizes: list[int]) -> list[Candidate]:
        """Attention is run again with every width, `proj` solved again for each."""
        streams, site, core = layer.streams, _attention(layer.site), layer.core
        query, key, _ = qk_moments(streams, site, core).subspaces()
        splits = {width: Split.empty(site.name) for width in sizes}
        for got, target in streams.inputs(site, site.name, CURVE_IMAGES, [*splits.values()]):
            inputs = core.inputs(*got.args, **got.kwargs)
            q, k, v = core.project(inputs)
            for width, split in splits.items():
                thin_q, thin_k = (t @ basis[..., :width].to(t.dtype) for t, basis in ((q, query), (k, key)))
                phi = core.inner_norm(core.beside(core.attend(thin_q, thin_k, v, inputs), v, inputs))
                if core.gate is not None:
                    phi = phi * core.gate(inputs.x).sigmoid()
                phi = core.call.restore(phi, inputs)
                split.add(phi, layer.weighted(target), got.parts, got.weights)
        prior = layer.prior()
        return [Candidate(ThinQkSpec(width), layer.loss_after_solving(split, prior)) for width, split in splits.items()]

    def loss_beside(self, loss: float, sizes: Sizes, whole: Sizes) -> float:
        """See `Operator.loss_beside`: only maps that are left have queries and keys to lose."""
        return loss * sizes["maps"] / whole["maps"]

    def solve(self, layer: SolvedSite, spec: ThinQkSpec) -> None:
        """See `Operator.solve`."""
        assert isinstance(layer, SolvedAttention)
        query, key, _ = qk_moments(layer.streams, layer.site, layer.core).subspaces()
        set_qk(layer.core, query, key, spec.qk_dim)

    def solve_from_weights(self, model: nn.Module, site: Site, spec: ThinQkSpec) -> None:
        """See `Operator.solve_from_weights`: as if the layer's inputs were white."""
        core = core_of(model, _attention(site))
        moments = QkMoments(site.name)
        moments.query, moments.key = (_grams(core.rows(part)[0].double(), core.num_maps) for part in "qk")
        set_qk(core, *moments.subspaces()[:2], spec.qk_dim)


class ThinVo(Operator[ThinVoSpec]):
    """Narrows values to the directions in which a head's output has most energy once it has passed `proj`."""

    spec = ThinVoSpec
    title = "narrower values"
    description = "values are narrower"
    source = "truncated SVD of the value-output product, weighted by the heads' outputs"
    in_channels = True

    def build(self, model: nn.Module, site: Site, spec: ThinVoSpec, form: Form) -> CompactAttention:
        """See `Operator.build`: the first channels of the old ones."""
        core = core_of(model, _attention(site))
        narrow(core, v_dim=spec.v_dim)
        return core

    def sizes(self, model: nn.Module, site: Site) -> list[int]:
        """Widths of values."""
        core = whole_core(model, _attention(site))
        return [] if core.fixed_v_dim is not None else list(range(MULTIPLE, core.v_dim, MULTIPLE))

    def size_of(self, spec: ThinVoSpec) -> int:
        """Channels of each head's values."""
        return spec.v_dim

    def resized(self, size: int, sizes: Sizes) -> Sizes:
        """Values of that width."""
        return {**sizes, "v": size}

    def losses(self, layer: SiteLosses, sizes: list[int]) -> list[Candidate]:
        """`proj` is solved again from the statistics of the whole heads, mapped to each width."""
        streams, site, core = layer.streams, _attention(layer.site), layer.core
        covariance = head_covariance(streams, site, core)
        bases, _ = value_bases(covariance, core.proj.weight, layer.root)
        split = Split.empty(site.name)
        for got, target in streams.inputs(site, site.name, into=[split]):
            phi = attention_fit.features(core, core.inputs(*got.args, **got.kwargs), ())
            split.add(phi, layer.weighted(target), got.parts, got.weights)

        def loss(width: int) -> float:
            narrow = torch.block_diag(*bases[..., :width])
            return layer.loss_after_solving(split.derive(lambda problem: problem.map(narrow)), None)

        return [Candidate(ThinVoSpec(width), loss(width)) for width in sizes]

    def solve(self, layer: SolvedSite, spec: ThinVoSpec) -> None:
        """See `Operator.solve`."""
        assert isinstance(layer, SolvedAttention)
        covariance = head_covariance(layer.streams, layer.site, layer.core)
        _narrow_values(layer.core, covariance, spec.v_dim, layer.streams.root(layer.site))

    def solve_from_weights(self, model: nn.Module, site: Site, spec: ThinVoSpec) -> None:
        """See `Operator.solve_from_weights`: as if the layer's inputs were white."""
        core = core_of(model, _attention(site))
        _narrow_values(core, _grams(core.rows("v")[0].double(), core.num_heads), spec.v_dim)


def _narrow_values(core: CompactAttention, covariance: Tensor, v_dim: int, root: Tensor | None = None) -> None:
    if v_dim != core.v_dim:
        basis, _ = value_bases(covariance, core.proj.weight, root)
        set_vo(core, basis[..., :v_dim], covariance)


def _grams(weight: Tensor, heads: int) -> Tensor:
    """Moments of each head's channels if the layer's inputs were white, `(heads, channels, channels)`."""
    blocks = weight.unflatten(0, (heads, -1))
    return blocks @ blocks.mT


def _attention(site: Site) -> AttentionSite:
    assert isinstance(site, AttentionSite)
    return site


@torch.no_grad()
def set_qk(core: CompactAttention, query: Tensor, key: Tensor, qk_dim: int) -> None:
    """Narrow a core's queries and keys to the first `qk_dim` columns of two projections `(maps, old, columns)`."""
    if qk_dim != core.qk_dim:
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
    half, _ = root_of(covariance)
    _, values, right = torch.linalg.svd(half @ blocks, full_matrices=False)
    basis, _ = torch.linalg.qr(blocks @ right.mT, mode="complete")
    return basis * signs(basis)[..., None, :], values.square()


def _project_rows(core: CompactAttention, part: str, basis: Tensor) -> None:
    """Replace every head's leading rows of a projection by `basis (heads, old, new)` of them; the rest is cut later."""
    heads, old, new = basis.shape
    for rows in core.rows(part):
        if rows is not None:
            values = rows.double().reshape(heads, old, -1)
            rows.copy_(torch.cat((basis.mT @ values, values[:, new:]), dim=1).reshape(rows.shape))
