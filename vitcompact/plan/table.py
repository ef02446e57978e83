"""A plan as plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, fields

from vitcompact.plan.specs import OperatorSpec
from vitcompact.utils.text import columns

Layers = Sequence[tuple[str, tuple[OperatorSpec, ...]]]
"""Names of layers with what is done to them."""


def plan_table(form: str, layers: Layers, merge_tokens: Sequence[int], reasons: Sequence[str]) -> str:
    """One line for each operator of each layer, then tokens merged and layers left alone.

    Args:
        reasons: why a layer is left alone, for each that is.
    """
    rows = [("layer", "operator", "sizes")]
    for name, operators in layers:
        rows += [(name, spec.op, _sizes(spec)) for spec in operators] or [(name, "", "solved again")]
    if merge_tokens:
        rows.append(("blocks", "merge tokens", ",".join(map(str, merge_tokens))))
    lines = [plan_line(form, layers, merge_tokens, reasons), "", columns(rows)]
    lines += ["", "left as they are:"] if reasons else []
    return "\n".join([*lines, *(f"  {count} x {reason}" for reason, count in Counter(reasons).items())])


def plan_line(form: str, layers: Layers, merge_tokens: Sequence[int], reasons: Sequence[str]) -> str:
    """How many layers get which operator, in one line."""
    counts = Counter(spec.op for _, operators in layers for spec in operators)
    parts = [f"{len(layers)} layers", *(f"{op} x{count}" for op, count in counts.items())]
    parts += [f"{sum(merge_tokens)} pairs of tokens merged"] if merge_tokens else []
    parts += [f"{len(reasons)} left as they are"] if reasons else []
    return f"Plan ({form}): {', '.join(parts)}"


def _sizes(spec: OperatorSpec) -> str:
    """The fields of a spec that are not at their defaults: `rank=192`."""
    shown = ((field, getattr(spec, field.name)) for field in fields(spec))
    return " ".join(f"{field.name}={_value(v)}" for field, v in shown if field.default is MISSING or v != field.default)


def _value(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
