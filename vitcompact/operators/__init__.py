"""What can be done to a layer: each operator knows its structure and its closed-form solution."""

from typing import Any

from vitcompact.operators.base import Operator
from vitcompact.operators.factorize import Factorize
from vitcompact.operators.hallucinate import Hallucinate
from vitcompact.plan.schema import FactorizeSpec, HallucinateSpec

OPERATORS: dict[str, Operator[Any]] = {HallucinateSpec.op: Hallucinate(), FactorizeSpec.op: Factorize()}

__all__ = ["OPERATORS", "Operator"]
