"""Factorised FFN output (cFFN): the hidden-to-output matrix as a product of two thin ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from vitcompact.calibration.least_squares import Split
from vitcompact.errors import UsageError
from vitcompact.layers.factor import FactorizedLinear
from vitcompact.layers.pointwise import matrix
from vitcompact.models import FfnSite, Site
from vitcompact.models.layer_scale import output_scale, remove_scale, scaled
from vitcompact.models.site_cost import Sizes
from vitcompact.operators import ffn_fit
from vitcompact.operators.base import Candidate, Operator, Request
from vitcompact.operators.factors import Factors, plain_svd
from vitcompact.operators.sites import SiteLosses, SolvedFfn, SolvedSite
from vitcompact.operators.steps import MULTIPLE, size_steps
from vitcompact.plans.schema import Form, LayerPlan
from vitcompact.plans.specs import LayerKind, OperatorSpec, at_least

MAX_BRANCHES = 64


@dataclass(frozen=True)
class FactorizeSpec(OperatorSpec):
    """cFFN of one FFN: its hidden-to-output matrix as a product of two of inner size `rank`.

    Attributes:
        rank: inner size.
        branches: parallel re-parameterised branches of each factor; they exist in the training form only.
    """

    op: ClassVar[str] = "factorize"
    kind: ClassVar[LayerKind] = "ffn"
    rank: int
    branches: int = 0

    def __post_init__(self) -> None:
        at_least(self, rank=1, branches=0)
        if self.branches > MAX_BRANCHES:
            raise UsageError(f"factorize: branches must be at most {MAX_BRANCHES}, got {self.branches}")


class Factorize(Operator[FactorizeSpec]):
    """Puts `FactorizedLinear` in the place of the output layer."""

    spec = FactorizeSpec
    title = "factorized FFN output"
    description = "the FFN's hidden-to-output matrix is a product of two thin ones (cFFN)"
    source = "arXiv 2306.10875, section 3.3"
    in_channels = True

    def build(self, model: nn.Module, site: Site, spec: FactorizeSpec, form: Form) -> FactorizedLinear:
        """See `Operator.build`; a LayerScale after the FFN is absorbed by the solved values."""
        assert isinstance(site, FfnSite)
        linear = model.get_submodule(site.output)
        weight, _ = matrix(linear)
        if spec.rank > min(weight.shape):
            outputs, hidden = weight.shape
            raise UsageError(
                f"factorize: {site.name} has a matrix of {hidden} to {outputs}, rank {spec.rank} is too large"
            )
        factor = FactorizedLinear(
            weight.shape[1],
            weight.shape[0],
            spec.rank,
            branches=spec.branches if form == "training" else 0,
            channel_dim=site.channel_dim,
            device=weight.device,
            dtype=weight.dtype,
        )
        factor.train(linear.training)
        model.set_submodule(site.output, factor)
        remove_scale(model, site.scale)
        return factor

    def grow(self, module: nn.Module, spec: FactorizeSpec) -> None:
        """See `Operator.grow`: silent branches beside the factors."""
        for part in list(module.modules()):
            if isinstance(part, FactorizedLinear):
                part.grow(spec.branches)

    def sizes(self, model: nn.Module, site: Site) -> list[int]:
        """Ranks of which two factors are smaller than the matrix."""
        assert isinstance(site, FfnSite)
        outputs, hidden = matrix(model.get_submodule(site.output))[0].shape
        limit = hidden * outputs / (hidden + outputs)
        return [rank for rank in size_steps(outputs) if rank < limit]

    def size_of(self, spec: FactorizeSpec) -> int:
        """The rank."""
        return spec.rank

    def resized(self, size: int, sizes: Sizes) -> Sizes | None:
        """The output matrix of that rank; nothing where its factors would be no smaller for the hidden units left."""
        hidden, outputs = sizes["hidden"], sizes["outputs"]
        return {**sizes, "rank": size} if size * (hidden + outputs) < hidden * outputs else None

    def losses(self, layer: SiteLosses, sizes: list[int]) -> list[Candidate]:
        """Energy of the outputs beyond the leading directions."""
        lost = _truncation_errors(layer.output_statistics(), layer.root)
        return [Candidate(FactorizeSpec(rank, layer.branches), layer.loss(float(lost[rank]))) for rank in sizes]

    def timed_as(self, spec: FactorizeSpec) -> FactorizeSpec:
        """See `Operator.timed_as`: branches are gone once folded."""
        return replace(spec, branches=0)

    def requested(self, model: nn.Module, site: Site, request: Request) -> int | str:
        """See `Operator.requested`: a multiple of 8, or of what was asked for, and at least that."""
        assert isinstance(site, FfnSite)
        outputs, hidden = matrix(model.get_submodule(site.output))[0].shape
        rank = rank_for(request.rank_ratio, hidden, outputs, request.size_multiple)
        return rank or f"rank ratio {request.rank_ratio:g} would not make it smaller"

    def choose_from_weights(self, model: nn.Module, site: Site, size: int, request: Request) -> FactorizeSpec:
        """See `Operator.choose_from_weights`."""
        return FactorizeSpec(size, request.branches)

    def solve(self, layer: SolvedSite, spec: FactorizeSpec) -> None:
        """See `Operator.solve`; the naive truncation where it is asked for and nothing was solved before."""
        assert isinstance(layer, SolvedFfn)
        if layer.solver.init == "svd" and layer.split is None:
            self._install(layer.streams.work, layer.site, spec, plain_svd(layer.weight, layer.bias, spec.rank))
            layer.naive = True
            return
        first, split = layer.split is None, layer.output_statistics()
        found = ffn_fit.fit(split, layer.weight, layer.bias, spec.rank, layer.streams.root(layer.site))
        self._install(layer.streams.work, layer.site, spec, found.factors)
        layer.found(found.error, split if first else None)

    def solve_from_weights(self, model: nn.Module, site: Site, spec: FactorizeSpec) -> None:
        """See `Operator.solve_from_weights`: plain SVD."""
        assert isinstance(site, FfnSite)
        weight, bias = scaled(output_scale(model, site.scale), *matrix(model.get_submodule(site.output)))
        self._install(model, site, spec, plain_svd(weight, bias, spec.rank))

    def _install(self, model: nn.Module, site: FfnSite, spec: FactorizeSpec, factors: Factors) -> None:
        factors.load_into(self.build(model, site, spec, "folded"))


def rank_in(layer: LayerPlan | None) -> int | None:
    """The rank of a planned layer's product, or None where its matrix stays whole."""
    spec = None if layer is None else layer.find(FactorizeSpec)
    return None if spec is None else spec.rank


def rank_for(rank_ratio: float, in_features: int, out_features: int, multiple: int = MULTIPLE) -> int | None:
    """Rank that `rank_ratio` means (a `multiple`, at least once), or None where the product would not be smaller."""
    rank = max(multiple, multiple * round(rank_ratio * out_features / multiple))
    return rank if rank * (in_features + out_features) < in_features * out_features else None


def _truncation_errors(split: Split, root: Tensor | None) -> Tensor:
    """Mean squared error of every rank `(outputs + 1,)`: directions of the fitting rows, energy of the judging ones."""
    seen, judged = (problem.centred()[0] for problem in (split.fit, split.judge))
    if root is not None:
        seen, judged = root @ seen @ root, root @ judged @ root
    vectors = torch.linalg.eigh(seen).eigenvectors.flip(1)
    energy = (vectors * (judged @ vectors)).sum(0)
    return energy.sum() - torch.cat((energy.new_zeros(1), energy.cumsum(0)))
