"""What an operator is: it builds the structure that a line of the plan describes.

How its values are solved from calibration statistics is in the operator's own file; surgery decides when.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from torch import nn

from vitcompact.models.base import AttentionSite, FfnSite
from vitcompact.plan.schema import Form
from vitcompact.plan.specs import OperatorSpec

Spec = TypeVar("Spec", bound=OperatorSpec, contravariant=True)


class Operator(Protocol[Spec]):
    """One way to make a layer smaller."""

    def build(self, model: nn.Module, site: AttentionSite | FfnSite, spec: Spec, form: Form) -> nn.Module:
        """Replace the layer in place by the structure of `spec`; returns the new module.

        The new values are the plainest ones that are right in shape: copied heads, a zero product. Loading
        overwrites them, conversion solves them.
        """
