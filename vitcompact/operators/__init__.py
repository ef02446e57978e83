"""What can be done to a layer: each operator knows its structure and its closed-form solution."""

from typing import Any

from vitcompact.operators.base import Operator
from vitcompact.operators.factorize import Factorize
from vitcompact.operators.hallucinate import Hallucinate
from vitcompact.operators.neurons import Neurons
from vitcompact.operators.thin import Thin
from vitcompact.plan.specs import FactorizeSpec, HallucinateSpec, NeuronsSpec, ThinQkSpec, ThinVoSpec

OPERATORS: dict[str, Operator[Any]] = {
    HallucinateSpec.op: Hallucinate(),
    ThinQkSpec.op: Thin(),
    ThinVoSpec.op: Thin(),
    NeuronsSpec.op: Neurons(),
    FactorizeSpec.op: Factorize(),
}

__all__ = ["OPERATORS", "Operator"]
