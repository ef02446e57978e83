"""What the verbs attach to the modules they return, where a test knows that it is there."""

from __future__ import annotations

from torch import nn

from vitcompact import Fidelity, FoldParity, Plan, results


def plan_of(model: nn.Module) -> Plan:
    """The plan of what was converted, folded or loaded."""
    return results(model).plan


def parity_of(model: nn.Module) -> FoldParity:
    """The parity of what was folded."""
    found = results(model).parity
    assert found is not None
    return found


def fidelity_of(model: nn.Module) -> Fidelity:
    """The fidelity of what was converted with images."""
    found = results(model).fidelity
    assert found is not None
    return found
