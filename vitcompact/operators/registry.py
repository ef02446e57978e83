"""Every operator, in the order in which those of one layer are applied. A new one is a file and a line here."""

from __future__ import annotations

from typing import Any

from vitcompact.operators.base import ModelOperator, Operator
from vitcompact.operators.factorize import Factorize
from vitcompact.operators.hallucinate import Hallucinate
from vitcompact.operators.merge import TokenMerging
from vitcompact.operators.neurons import Neurons
from vitcompact.operators.thin import ThinQk, ThinVo
from vitcompact.plans.specs import register

OPERATORS: dict[str, Operator[Any]] = {}
"""Operators of layers, by name."""
MODEL_OPERATORS: tuple[ModelOperator, ...] = (TokenMerging(),)
"""Operators of whole models."""


def add(*operators: Operator[Any]) -> None:
    """Make plans, planning and surgery know these operators."""
    OPERATORS.update({operator.name: operator for operator in operators})
    register(operator.spec for operator in operators)


add(
    Hallucinate(),
    ThinQk(),
    ThinVo(),
    Neurons(),
    Factorize(),
)
