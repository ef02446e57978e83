"""What can be done to a layer: each operator is one object that knows its structure, its losses and its solution."""

from vitcompact.operators.base import Candidate, Operator, describe
from vitcompact.operators.registry import MODEL_OPERATORS, OPERATORS

__all__ = ["MODEL_OPERATORS", "OPERATORS", "Candidate", "Operator", "describe"]
