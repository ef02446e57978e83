"""A plan as plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from vitcompact.utils.text import columns

if TYPE_CHECKING:
    from vitcompact.plan.schema import Plan


def plan_table(plan: Plan) -> str:
    """One line for each operator of each layer, then tokens merged and layers left alone by reason."""
    rows = [("layer", "operator", "sizes")]
    rows += [(layer.name, spec.op, _sizes(spec)) for layer in plan.layers for spec in layer.operators]
    rows += [(layer.name, "", "solved again") for layer in plan.layers if not layer.operators]
    if plan.merge_tokens:
        rows.append(("blocks", "merge tokens", ",".join(map(str, plan.merge_tokens))))
    lines = [plan_line(plan), "", columns(rows)]
    reasons = Counter(item.reason for item in plan.skipped)
    lines += ["", "left as they are:"] if reasons else []
    return "\n".join([*lines, *(f"  {count} x {reason}" for reason, count in reasons.items())])


def plan_line(plan: Plan) -> str:
    """How many layers get which operator, in one line."""
    counts = Counter(spec.op for layer in plan.layers for spec in layer.operators)
    parts = [f"{len(plan.layers)} layers", *(f"{op} x{count}" for op, count in counts.items())]
    parts += [f"{sum(plan.merge_tokens)} pairs of tokens merged"] if plan.merge_tokens else []
    parts += [f"{len(plan.skipped)} left as they are"] if plan.skipped else []
    return f"Plan ({plan.form}): {', '.join(parts)}"


def _sizes(spec: Any) -> str:
    """The fields of a spec that are not at their defaults: `rank=192`."""
    shown = ((field, getattr(spec, field.name)) for field in fields(spec))
    return " ".join(f"{field.name}={_value(v)}" for field, v in shown if field.default is MISSING or v != field.default)


def _value(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
