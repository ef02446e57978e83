"""What an operator is: one object that says everything the rest of the package needs to know of it.

Planning, surgery, loading, folding, cards and tables loop over the registry (`operators/registry.py`) and name none.
How to add one: `docs/extending.md`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import nn

from vitcompact.calibration.output_sensitivity import OutputSensitivity
from vitcompact.models import Site
from vitcompact.models.site_cost import Sizes
from vitcompact.operators.sites import SiteLosses, SolvedSite
from vitcompact.plans.schema import Form, Plan
from vitcompact.plans.specs import LayerKind, OperatorSpec

Spec = TypeVar("Spec", bound=OperatorSpec)


class Request(Protocol):
    """What a user may ask of operators, beyond a budget: shares for every layer and the forms of what is made."""

    @property
    def ratio(self) -> float: ...
    @property
    def rank_ratio(self) -> float: ...
    @property
    def terms(self) -> tuple[str, ...]: ...
    @property
    def filter_rank(self) -> int: ...
    @property
    def branches(self) -> int: ...
    @property
    def size_multiple(self) -> int: ...


@dataclass(frozen=True)
class Candidate:
    """One thing that an operator could do to a layer, with the increase of the model's loss expected of it."""

    spec: OperatorSpec
    loss: float


class Operator(ABC, Generic[Spec]):
    """One way to make a layer smaller.

    Attributes:
        spec: its line in a plan.
        title: what it leaves, in two or three words.
        description: one sentence for model cards.
        source: the paper or book that it is from.
        in_channels: whether its sizes are ranks or widths, of which kernels like multiples.
    """

    spec: type[Spec]
    title: ClassVar[str]
    description: ClassVar[str]
    source: ClassVar[str]
    in_channels: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Its name in a plan and in `ops`."""
        return self.spec.op

    @property
    def kind(self) -> LayerKind:
        """Of the layers that it applies to."""
        return self.spec.kind

    def label(self, spec: Spec) -> str:
        """What is left of a layer, in a few words: the spec's first field unless it says more."""
        first = fields(spec)[0].name
        return f"{first} {getattr(spec, first)}"

    def short_label(self, spec: Spec) -> str:
        """The same where there is less room."""
        return self.label(spec)

    # Structure: needed to plan, to load and to convert.

    @abstractmethod
    def build(self, model: nn.Module, site: Site, spec: Spec, form: Form) -> nn.Module:
        """Replace the layer in place by the structure of `spec`; returns the new module.

        The new values are the plainest ones that are right in shape: copied heads, a zero product. Loading
        overwrites them, conversion solves them.

        Raises:
            UsageError: the layer is not of the size that `spec` is for, or does not allow it.
        """

    def grow(self, module: nn.Module, spec: Spec) -> None:
        """Give a solved, folded module its training form, in place: the same map with more to train."""

    def current(self, module: nn.Module, spec: Spec) -> Spec:
        """The spec of what a solved or folded module still has of it."""
        return spec

    # Planning: which sizes there are, what they cost and what they would do to the model's output.

    @abstractmethod
    def sizes(self, model: nn.Module, site: Site) -> list[int]:
        """Candidate sizes, none where the operator does not apply to this layer."""

    def multiples(self, model: nn.Module, site: Site, multiple: int) -> list[int]:
        """Those of `sizes` that are multiples, where they are ranks or widths; all of them where they are not."""
        return [size for size in self.sizes(model, site) if not self.in_channels or size % multiple == 0]

    @abstractmethod
    def size_of(self, spec: Spec) -> int:
        """The size that a spec stands for, as in `sizes`."""

    def offers(self, model: nn.Module, site: Site, spec: Spec) -> bool:
        """Whether `losses` gives a spec like this one for the layer, whose size is one of `sizes`."""
        return True

    @abstractmethod
    def resized(self, size: int, sizes: Sizes) -> Sizes | None:
        """The sizes of a layer after the operator, given those before it; None where nothing would be saved."""

    @abstractmethod
    def losses(self, layer: SiteLosses, sizes: list[int]) -> list[Candidate]:
        """Expected loss increase of every size, from calibration statistics, by rising size."""

    def loss_beside(self, loss: float, sizes: Sizes, whole: Sizes) -> float:
        """The loss of a candidate where operators before it have left `sizes` of the `whole` layer."""
        return loss

    def timed_as(self, spec: Spec) -> Spec:
        """The spec without what plays no part in the folded layer's time."""
        return spec

    # Values: from statistics, or from weights alone.

    def requested(self, model: nn.Module, site: Site, request: Request) -> int | str | None:
        """The size that a user's shares ask for here, or the reason for none; None where no share is for it."""
        return None

    def choose(self, layer: SolvedSite, size: int, request: Request) -> Spec:
        """The spec of a requested size, chosen in the converted stream."""
        return self.choose_from_weights(layer.streams.work, layer.site, size, request)

    @abstractmethod
    def solve(self, layer: SolvedSite, spec: Spec) -> None:
        """Give the layer its structure and values, in place; outputs are solved again by `layer.finish` at the end."""

    def choose_from_weights(self, model: nn.Module, site: Site, size: int, request: Request) -> Spec:
        """`choose` without images; by default the size is all there is to choose."""
        return self.spec(size)  # type: ignore[call-arg]

    @abstractmethod
    def solve_from_weights(self, model: nn.Module, site: Site, spec: Spec) -> None:
        """Give the layer its structure and the best values that weights alone tell, in place."""


class ModelOperator(ABC):
    """A way to make a whole model cheaper that is no matter of single layers.

    Attributes:
        name: as it is called in tables.
        title, description, source: as those of `Operator`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    description: ClassVar[str]
    source: ClassVar[str]

    @abstractmethod
    def label(self, plan: Plan) -> str | None:
        """What a plan has of it, in a few words; None for nothing."""

    @abstractmethod
    def install(self, model: nn.Module, plan: Plan) -> None:
        """Switch it on as the plan says, in place, where it says so; names of tensors stay as they are."""

    @abstractmethod
    def solve(self, model: nn.Module, plan: Plan, known: OutputSensitivity | None) -> None:
        """Give what was installed its values, in place.

        Args:
            known: of the original; None without images, or where it is to be left out.

        Raises:
            UsageError: the plan has what needs it.
        """


def describe(operator: Operator[Any], data: Mapping[str, Any], short: bool = False) -> str:
    """`label` or `short_label` of an operator as a plan's JSON has it."""
    spec = operator.spec.from_json(data)
    return operator.short_label(spec) if short else operator.label(spec)
