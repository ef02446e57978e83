"""What the verbs attach to the modules they return, with its type."""

from __future__ import annotations

from torch import nn

from vitcompact.folding.verify import FoldParity
from vitcompact.plan.schema import Plan
from vitcompact.surgery import Fidelity


def plan_of(model: nn.Module) -> Plan:
    """`model.vitcompact_plan`."""
    assert isinstance(model.vitcompact_plan, Plan)
    return model.vitcompact_plan


def parity_of(model: nn.Module) -> FoldParity:
    """`model.vitcompact_parity`, of what was folded."""
    assert isinstance(model.vitcompact_parity, FoldParity)
    return model.vitcompact_parity


def fidelity_of(model: nn.Module) -> Fidelity:
    """`model.vitcompact_fidelity`, of what was converted with images."""
    assert isinstance(model.vitcompact_fidelity, Fidelity)
    return model.vitcompact_fidelity
