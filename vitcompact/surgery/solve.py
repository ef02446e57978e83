"""Solving one site from the streams: its operators in their order, then its outputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from vitcompact.calibration.streams import Streams
from vitcompact.errors import UsageError
from vitcompact.models import Site as Site
from vitcompact.operators import OPERATORS
from vitcompact.operators.base import Request
from vitcompact.operators.outputs import finish, opened
from vitcompact.operators.sites import SolvedSite, Solver
from vitcompact.options.surgery import INGREDIENTS, OLDER_NAMES
from vitcompact.plans.schema import LayerPlan
from vitcompact.plans.specs import LayerKind, OperatorSpec
from vitcompact.surgery.reconstruct import NO_STEPS, ReconstructOptions


@dataclass(frozen=True)
class Method(Solver):
    """How values are found.

    `propagated_error` lets targets take back what the residual stream has drifted; `sensitivity` weighs errors by
    what they do to the model's output, in a budget and where it is chosen what stays of a layer.
    """

    sensitivity: bool = True
    propagated_error: bool = True
    reconstruct: ReconstructOptions = NO_STEPS

    def without(self, names: Iterable[str]) -> Method:
        """The same method with some ingredients switched off.

        Raises:
            UsageError: there is no such ingredient.
        """
        names = [OLDER_NAMES.get(name, name) for name in names]
        unknown = sorted(set(names) - set(INGREDIENTS))
        if unknown:
            raise UsageError(f"`without` takes {', '.join(INGREDIENTS)}; got {unknown[0]!r}")
        return replace(self, **dict.fromkeys(names, False))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Draft:
    """What a layer is to become: its operators, or those still to be chosen by their name and size.

    A layer without either keeps its structure and has its outputs solved again.
    """

    kind: LayerKind
    operators: tuple[OperatorSpec, ...] = ()
    requested: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Solved:
    """A layer's plan, and what was measured while it was solved (see `SolvedSite`)."""

    layer: LayerPlan
    error: float
    rows_per_unknown: float


def solve(streams: Streams, site: Site, draft: Draft, request: Request, solver: Solver) -> Solved:
    """Give a site in the converted stream its structure and values, in place."""
    layer = opened(streams, site, solver)
    specs = draft.operators or tuple(OPERATORS[op].choose(layer, size, request) for op, size in draft.requested)
    for spec in specs:
        OPERATORS[spec.op].solve(layer, spec)
    finish(layer)
    return Solved(LayerPlan(site.name, draft.kind, _current(layer, specs)), layer.error, layer.rows_per_unknown)


def _current(layer: SolvedSite, specs: tuple[OperatorSpec, ...]) -> tuple[OperatorSpec, ...]:
    """The operators that are left after solving: a part that held-out images did not want is gone."""
    module = layer.streams.work.get_submodule(layer.site.name)
    return tuple(OPERATORS[spec.op].current(module, spec) for spec in specs)
