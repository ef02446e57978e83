"""Loss increase curves as JSON, and back: read by type, and compared with what the operators offer for each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from vitcompact.data import resolve_input
from vitcompact.models import Site, inspect
from vitcompact.models.site_cost import site_costs
from vitcompact.operators import OPERATORS, Candidate
from vitcompact.operators.steps import MULTIPLE
from vitcompact.planning.candidates import Losses
from vitcompact.planning.predicted import Predicted
from vitcompact.plans.schema import Skipped
from vitcompact.utils.typed import typed

_LARGEST_LOSS = 1e30


@dataclass(frozen=True)
class _Kept:
    """What `to_json` gives: candidates by site and operator, each with its loss, and the rest."""

    sites: Mapping[str, Mapping[str, tuple[tuple[Mapping[str, Any], float], ...]]]
    skipped: tuple[tuple[str, str], ...]
    predicted: Predicted | None


def to_json(losses: Losses) -> dict[str, Any]:
    """Candidates by site and operator with their losses, and what was skipped; costs are counted again."""
    return {
        "sites": {
            site.name: {
                op: [[candidate.spec.to_json(), candidate.loss] for candidate in found]
                for op, found in losses.candidates[site.name].items()
            }
            for site in losses.sites
        },
        "skipped": [[skipped.name, skipped.reason] for skipped in losses.skipped],
        "predicted": None if losses.predicted is None else asdict(losses.predicted),
    }


def from_json(
    original: nn.Module, data: Mapping[str, Any], branches: int | None = None, size_multiple: int = MULTIPLE
) -> Losses:
    """What `to_json` wrote of the same model: exactly the sizes that its operators offer, each with a loss.

    Args:
        branches: of factors, as they were asked for.
        size_multiple: of ranks and widths, likewise.

    Raises:
        UsageError, KeyError, TypeError, ValueError: anything else.
    """
    kept = typed(_Kept, data, "the file")
    known = {site.name: site for site in inspect(original).sites}
    sites = tuple(known[name] for name in kept.sites)
    candidates = {
        name: {op: _candidates(original, known[name], op, rows, branches, size_multiple) for op, rows in by_op.items()}
        for name, by_op in kept.sites.items()
    }
    skipped = tuple(Skipped(name, reason) for name, reason in kept.skipped)
    whole, costs = site_costs(original, sites, resolve_input(original).input_size)
    _check_prediction(kept.predicted)
    return Losses(candidates, costs, whole, sites, skipped, predicted=kept.predicted)


def _check_prediction(predicted: Predicted | None) -> None:
    """Raises ValueError for points that nobody measures."""
    points = () if predicted is None else predicted.points
    losses = [loss for loss, _ in points]
    in_range = all(0 <= loss <= _LARGEST_LOSS and abs(likeness) < 1.001 for loss, likeness in points)
    if not in_range or losses != sorted(losses) or (predicted is not None and predicted.num_samples < 1):
        raise ValueError("no prediction: out of order or range, or of no images")


def _candidates(
    model: nn.Module,
    site: Site,
    op: str,
    rows: tuple[tuple[Mapping[str, Any], float], ...],
    branches: int | None,
    size_multiple: int,
) -> list[Candidate]:
    """The candidates of one operator, checked against what it offers for the layer."""
    operator = OPERATORS[op]
    found = [Candidate(operator.spec.from_json(spec), loss) for spec, loss in rows]
    sizes = operator.multiples(model, site, size_multiple) if operator.kind == site.kind else []
    if sorted(operator.size_of(candidate.spec) for candidate in found) != sorted(sizes):
        raise ValueError(f"{site.name}: {op}: other sizes than those of the layer")
    for candidate in found:
        spec, loss = candidate.spec, candidate.loss
        if abs(loss) > _LARGEST_LOSS:
            raise ValueError(f"{site.name}: {op}: no loss: {loss}")
        as_asked = branches is None or getattr(spec, "branches", branches) == branches
        if not as_asked or not operator.offers(model, site, spec):
            raise ValueError(f"{site.name}: {op}: not what is offered for the layer")
    return found
