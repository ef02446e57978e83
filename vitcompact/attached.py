"""What `convert`, `fold` and `load` attach to the modules they return, with its types."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn

from vitcompact.errors import UsageError
from vitcompact.folding import FoldParity, MergingEffect
from vitcompact.plans.schema import Plan
from vitcompact.surgery import Fidelity

T = TypeVar("T")


@dataclass(frozen=True)
class Results:
    """What is known of a compacted model; None marks what was not measured on it.

    Attributes:
        plan: what was done to which layer, also `model.vitcompact_plan`.
        fidelity: likeness to the original, after `convert` with images (`model.vitcompact_fidelity`).
        parity: how exact folding was, after `fold` (`model.vitcompact_parity`).
        budget: what the plan's budget would have cost at other sizes, after `convert` with a target
            (`model.vitcompact_budget`).
        merging: what merging tokens does to the outputs, after `fold` where tokens merge (`model.vitcompact_merging`).
    """

    plan: Plan
    fidelity: Fidelity | None = None
    parity: FoldParity | None = None
    merging: MergingEffect | None = None
    budget: dict[str, Any] | None = field(default=None, repr=False)


def results(model: nn.Module) -> Results:
    """The plan and the measurements that a compacted model carries.

    `convert` and `fold` return a plain module, which stays usable wherever a timm model is; so what they found travels
    on the module, and this function reads it with its types. (A pair of module and result would make every caller
    unpack it, and a second way of calling would give two return types.) It works on what `load` returns as well.

    Raises:
        UsageError: the model does not come from this package.
    """
    plan = getattr(model, "vitcompact_plan", None)
    if not isinstance(plan, Plan):
        raise UsageError(f"model must come from convert, fold or load, got a {type(model).__name__} without a plan")
    return Results(
        plan,
        _attached(model, "vitcompact_fidelity", Fidelity),
        _attached(model, "vitcompact_parity", FoldParity),
        _attached(model, "vitcompact_merging", MergingEffect),
        _attached(model, "vitcompact_budget", dict),
    )


def _attached(model: nn.Module, name: str, kind: type[T]) -> T | None:
    found = getattr(model, name, None)
    return found if isinstance(found, kind) else None
