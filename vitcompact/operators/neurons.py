"""Fewer hidden units: removal by the optimal-brain-surgeon criterion with compensation by the units that stay.

Taking unit `j` out of `y = W h` and solving the others again raises the squared error by `|w_j|^2 / [C^-1]_jj`, `C` the
covariance of the hidden units (Hassibi and Stork 1993, for a linear layer). One greedy sweep gives the order of removal
and the error at every size.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vitcompact.calibration.least_squares import LeastSquares, Split
from vitcompact.calibration.regularisation import choose
from vitcompact.errors import UsageError
from vitcompact.layers.pointwise import is_pointwise_map, linear_like, matrix
from vitcompact.models import FfnSite, Site
from vitcompact.models.ffn import fixed_hidden, hidden_layers
from vitcompact.models.layer_scale import output_scale, remove_scale, scaled
from vitcompact.models.site_cost import Sizes
from vitcompact.operators.base import Candidate, Operator
from vitcompact.operators.site_statistics import ffn_statistics
from vitcompact.operators.sites import SiteLosses, SolvedFfn, SolvedSite
from vitcompact.operators.steps import size_steps
from vitcompact.plans.schema import Form
from vitcompact.plans.specs import LayerKind, OperatorSpec, at_least

DAMPING = 1e-4
"""Ridge of the covariance that is inverted, as a fraction of the mean variance of a hidden unit."""
STEP = 8
"""Units taken out at a time between two updates of the inverse."""


@dataclass(frozen=True)
class NeuronsSpec(OperatorSpec):
    """Fewer hidden units of an FFN: `hidden` of them are left."""

    op: ClassVar[str] = "neurons"
    kind: ClassVar[LayerKind] = "ffn"
    hidden: int

    def __post_init__(self) -> None:
        at_least(self, hidden=1)


class Neurons(Operator[NeuronsSpec]):
    """Removes hidden units; those that stay take over what can be taken over."""

    spec = NeuronsSpec
    title = "fewer hidden units"
    description = "hidden units of the FFN are gone, what is left was solved again"
    source = "optimal brain surgeon for a linear layer (Hassibi and Stork 1993)"
    in_channels = True

    def build(self, model: nn.Module, site: Site, spec: NeuronsSpec, form: Form) -> nn.Module:
        """See `Operator.build`: the first units."""
        assert isinstance(site, FfnSite)
        ffn = model.get_submodule(site.name)
        hidden = matrix(model.get_submodule(site.output))[0].shape[1]
        if spec.hidden > hidden:
            raise UsageError(f"neurons: {site.name} has {hidden} hidden units, {spec.hidden} is not fewer")
        keep_units(model, site, torch.arange(spec.hidden))
        remove_scale(model, site.scale)
        return ffn

    def sizes(self, model: nn.Module, site: Site) -> list[int]:
        """Numbers of hidden units."""
        assert isinstance(site, FfnSite)
        free = fixed_hidden(model.get_submodule(site.name)) is None
        return size_steps(matrix(model.get_submodule(site.output))[0].shape[1]) if free else []

    def size_of(self, spec: NeuronsSpec) -> int:
        """Hidden units left."""
        return spec.hidden

    def resized(self, size: int, sizes: Sizes) -> Sizes | None:
        """So many hidden units; nothing where no more are left."""
        return {**sizes, "hidden": size} if size < sizes["hidden"] else None

    def losses(self, layer: SiteLosses, sizes: list[int]) -> list[Candidate]:
        """One sweep of removal gives the error of every size."""
        split = layer.hidden_statistics()
        removal = removal_order(split.fit, layer.weight, layer.root, min(sizes), sizes, split.judge)
        return [Candidate(NeuronsSpec(size), layer.loss(error)) for size, error in removal.error.items()]

    def solve(self, layer: SolvedSite, spec: NeuronsSpec) -> None:
        """See `Operator.solve`."""
        assert isinstance(layer, SolvedFfn)
        solve_units(layer, spec.hidden)

    def solve_from_weights(self, model: nn.Module, site: Site, spec: NeuronsSpec) -> None:
        """See `Operator.solve_from_weights`: units with the largest product of incoming and outgoing weight norms."""
        assert isinstance(site, FfnSite)
        weight, bias = scaled(output_scale(model, site.scale), *matrix(model.get_submodule(site.output)))
        units = _strongest(model.get_submodule(site.name), weight, spec.hidden)
        keep_units(model, site, units)
        set_output(model, site, weight[:, units], bias)


def solve_units(layer: SolvedFfn, hidden: int) -> None:
    """Leave `hidden` units and solve the output layer for them; with all of them it is only solved again."""
    root = layer.streams.root(layer.site)
    fitted = fit(ffn_statistics(layer.streams, layer.site), layer.weight, layer.bias, hidden, root)
    fitted.load_into(layer.streams.work, layer.site)
    layer.weight, layer.bias, layer.split = fitted.weight, fitted.bias, fitted.split
    layer.found(fitted.error, fitted.split)


def _strongest(ffn: nn.Module, weight: Tensor, count: int) -> Tensor:
    """Units with the largest product of incoming and outgoing weight norms."""
    strength = weight.norm(dim=0)
    for name in hidden_layers(ffn):
        rows = _incoming(ffn.get_submodule(name))
        strength = strength * rows.double().flatten(1).norm(dim=1).unflatten(0, (-1, len(strength))).norm(dim=0)
    return torch.topk(strength, count).indices.sort().values


def _incoming(layer: nn.Module) -> Tensor:
    """What comes into each unit through a layer, one row a unit."""
    if is_pointwise_map(layer):
        return matrix(layer)[0]
    assert isinstance(layer.weight, Tensor)
    return layer.weight


@torch.no_grad()
def keep_units(model: nn.Module, site: FfnSite, units: Tensor) -> None:
    """Keep some hidden units of an FFN in place, in the given order; its output layer has a bias afterwards.

    Raises:
        UsageError: the FFN does not allow it.
    """
    ffn = model.get_submodule(site.name)
    if reason := fixed_hidden(ffn):
        raise UsageError(f"neurons: {site.name}: {reason}")
    output = model.get_submodule(site.output)
    weight, bias = matrix(output)
    for name in hidden_layers(ffn):
        layer = ffn.get_submodule(name)
        copies = _incoming(layer).shape[0] // weight.shape[1]
        rows = torch.cat([units + i * weight.shape[1] for i in range(copies)])
        ffn.set_submodule(name, _fewer_outputs(layer, rows))
    thin = linear_like(output, weight[:, units], weight.new_zeros(len(weight)) if bias is None else bias)
    model.set_submodule(site.output, thin)


@torch.no_grad()
def set_output(model: nn.Module, site: FfnSite, weight: Tensor, bias: Tensor) -> None:
    """Give an FFN's output layer these values, a LayerScale absorbed, and take the LayerScale out."""
    output = model.get_submodule(site.output)
    rows, old = matrix(output)
    assert old is not None
    rows.copy_(weight)
    old.copy_(bias)
    remove_scale(model, site.scale)


def _fewer_outputs(layer: nn.Module, rows: Tensor) -> nn.Module:
    """A linear layer, 1x1 or depthwise convolution with some of its outputs."""
    if is_pointwise_map(layer):
        weight, bias = matrix(layer)
        return linear_like(layer, weight[rows], None if bias is None else bias[rows])
    assert isinstance(layer, nn.Conv2d)
    thin = copy.deepcopy(layer)
    thin.in_channels = thin.out_channels = thin.groups = len(rows)
    thin.weight = nn.Parameter(layer.weight[rows], layer.weight.requires_grad)
    thin.bias = None if layer.bias is None else nn.Parameter(layer.bias[rows], layer.bias.requires_grad)
    return thin


@dataclass(frozen=True)
class Removal:
    """In which order hidden units go, and what that costs.

    Attributes:
        order: unit indices, the first to go first; units that were never considered come last.
        error: by number of units left, the mean squared residual on the judging rows (weighted by `root`).
    """

    order: Tensor
    error: dict[int, float]

    def kept(self, count: int) -> Tensor:
        """Indices of the `count` units that stay longest, ascending."""
        return self.order[len(self.order) - count :].sort().values


def removal_order(
    statistics: LeastSquares,
    weight: Tensor,
    root: Tensor | None = None,
    keep: int = 0,
    sizes: Collection[int] = (),
    judge: LeastSquares | None = None,
) -> Removal:
    """One greedy sweep from all units down to `keep`.

    Args:
        statistics: features are the hidden units.
        weight: `(outputs, hidden)` of the layer, float64, a LayerScale absorbed.
        root: `(outputs, outputs)` by which output errors are weighted, or None.
        sizes: numbers of units left at which the error is measured on `judge`'s rows.
    """
    inverse = torch.linalg.inv(_damped(statistics.centred()[0]))
    whole = (weight if root is None else root @ weight).T
    seen = None if judge is None else judge.centred()[0]
    weights = whole.clone()
    units, alive = torch.arange(len(inverse), device=inverse.device), len(inverse)
    gone = torch.zeros(len(inverse), dtype=torch.bool, device=inverse.device)
    order: list[Tensor] = []
    error: dict[int, float] = {}
    while alive > keep:
        loss = weights.square().sum(1) / inverse.diagonal().clamp_min(1e-300)
        going = loss.masked_fill(gone, float("inf")).topk(min(STEP, alive - keep), largest=False).indices
        lever = torch.linalg.solve(inverse[going][:, going], torch.cat((weights[going], inverse[going]), dim=1))
        of_weights, of_inverse = lever.split((weights.shape[1], len(inverse)), dim=1)
        order.append(units[going])
        column = inverse[:, going]
        weights.addmm_(column, of_weights, alpha=-1)
        inverse.addmm_(column, of_inverse, alpha=-1)
        gone[going] = True
        alive -= len(going)
        if alive in sizes and seen is not None:
            lost = whole.index_add(0, units[~gone], weights[~gone], alpha=-1)
            error[alive] = float((lost * (seen @ lost)).sum())
        if alive < len(gone) // 2:  # smaller matrices from here on
            units, weights, inverse, gone = units[~gone], weights[~gone], inverse[~gone][:, ~gone], gone[~gone]
    return Removal(torch.cat([*order, units[~gone]]), error)


@dataclass(frozen=True)
class NeuronsFit:
    """The units that stay, and the output layer solved for them: `weight (outputs, kept)`, `bias (outputs,)`.

    `split` are the statistics of those units.
    """

    units: Tensor
    split: Split
    weight: Tensor
    bias: Tensor
    error: float
    ridge: float
    drift_share: float

    @torch.no_grad()
    def load_into(self, model: nn.Module, site: FfnSite) -> None:
        """Keep these units of an FFN and give its output layer these values, in place; LayerScale goes."""
        keep_units(model, site, self.units)
        set_output(model, site, self.weight, self.bias)


def fit(split: Split, weight: Tensor, bias: Tensor, hidden: int, root: Tensor | None = None) -> NeuronsFit:
    """Choose `hidden` units and solve the output layer for them.

    Args:
        split: features are the hidden units, target `[output | output + drift]`.
        weight, bias: of the original layer, float64, a LayerScale absorbed.
        root: `(outputs, outputs)` by which errors are weighted for the choice, or None.
    """
    units = removal_order(split.fit, weight, root, hidden).kept(hidden)
    prior = _without(split.fit, torch.cat((weight.T, bias[None])), units)
    split = split.derive(lambda problem: problem.select(units))
    best = choose(split.fit, split.judge, prior)
    return NeuronsFit(units, split, best.solution[:-1].T, best.solution[-1], best.error, best.ridge, best.drift_share)


def _without(statistics: LeastSquares, solution: Tensor, units: Tensor) -> Tensor:
    """The map of the remaining units that is closest to `solution` of all of them on the data."""
    covariance, mean = statistics.centred()
    rows = _damped(covariance)[units]
    slope = torch.linalg.solve(rows[:, units], rows @ solution[:-1])
    intercept = solution[-1] + mean @ solution[:-1] - mean[units] @ slope
    return torch.cat((slope, intercept[None]))


def _damped(covariance: Tensor) -> Tensor:
    """The same matrix, in place, with a small ridge."""
    covariance.diagonal().add_(DAMPING * covariance.diagonal().mean().clamp_min(1e-300))
    return covariance
