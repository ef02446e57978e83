"""What an operator leaves of a layer, as pure data: the ground that all specs share.

Sizes are enough to rebuild a layer's structure; which units or directions are kept is in the weights. Each operator
declares its spec in its own file and is registered in `vitcompact/operators/registry.py`; importing the package does
that, so that a plan knows every operator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar, get_type_hints

from vitcompact.errors import UsageError

LayerKind = Literal["attention", "ffn"]
Self = TypeVar("Self", bound="OperatorSpec")


@dataclass(frozen=True)
class OperatorSpec:
    """Base of the specs, which are frozen dataclasses of integers and flags.

    Attributes:
        op: name of the operator in a plan.
        kind: of the layers that it applies to.
        aliases: names that it had in plans written before.
    """

    op: ClassVar[str]
    kind: ClassVar[LayerKind]
    aliases: ClassVar[tuple[str, ...]] = ()

    def to_json(self) -> dict[str, Any]:
        """As a plan has it; `from_json` reads it back."""
        return {"op": self.op, **asdict(self)}

    @classmethod
    def from_json(cls: type[Self], data: Mapping[str, Any]) -> Self:
        """Read what a plan says of this operator; fields with a default may be absent.

        Raises:
            UsageError: an unknown field, or a value of another type than the field's.
            KeyError: a field is missing.
        """
        cls.refuse_unknown(data)
        hints = get_type_hints(cls)
        given = {field.name: field for field in fields(cls) if field.name in data}
        return cls(**{name: exactly(data[name], hints[name], f"{cls.op}: {name}") for name in given})

    @classmethod
    def refuse_unknown(cls, data: Mapping[str, Any]) -> None:
        """Raises UsageError where `data` has a key that is no field: a misspelt one would be lost without a word."""
        known = {"op", *(field.name for field in fields(cls))}
        if unknown := sorted(set(data) - known):
            raise UsageError(f"{cls.op}: unknown field {unknown[0]!r}; known: {', '.join(sorted(known - {'op'}))}")


def exactly(value: Any, kind: type, what: str) -> Any:
    """`value`, which has to be an integer or a flag: no fraction, no text, no flag as a number."""
    if type(value) is not kind:
        raise UsageError(f"{what} must be {'true or false' if kind is bool else 'an integer'}, got {value!r}")
    return value


def at_least(spec: OperatorSpec, **smallest: int) -> None:
    """Raises UsageError where a size of `spec` is below what is named for it."""
    for name, least in smallest.items():
        if (value := getattr(spec, name)) < least:
            raise UsageError(f"{spec.op}: {name} must be at least {least}, got {value}")


SPECS: dict[str, type[OperatorSpec]] = {}
"""Every operator's spec by its name, in the order in which those of one layer are applied."""

ALIASES: dict[str, str] = {}
"""Names of operators in plans written before, with what they are called now."""


def register(specs: Iterable[type[OperatorSpec]]) -> None:
    """Make plans know these operators, in the order in which they are applied."""
    for spec in specs:
        SPECS[spec.op] = spec
        ALIASES.update(dict.fromkeys(spec.aliases, spec.op))
