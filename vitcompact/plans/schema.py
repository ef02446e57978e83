"""The plan: what surgery does to which layer, as pure data (frozen, versioned, JSON in and out).

A plan is complete: a model's skeleton plus its plan gives every tensor's name and shape, so loading is
"build the timm model, replay the plan, load strictly". One layer may carry several operators, applied in order.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from vitcompact.errors import UsageError
from vitcompact.plans.specs import ALIASES, SPECS, LayerKind, OperatorSpec
from vitcompact.plans.typed import known, listed, text
from vitcompact.utils.files import write_file
from vitcompact.utils.reading import read_json, shortened, user_path
from vitcompact.utils.text import columns, html_table

PLAN_VERSION = 1

Form = Literal["training", "folded"]
MergeBy = Literal["sensitivity", "tokens", "keys"]
"""What tokens to merge are compared by: themselves, weighted by output sensitivity or not, or the keys of the attention
before them (ToMe)."""
Spec = TypeVar("Spec", bound=OperatorSpec)


@dataclass(frozen=True)
class LayerPlan:
    """The operators of one attention layer or FFN, named by its module path in the timm model."""

    name: str
    kind: LayerKind
    operators: tuple[OperatorSpec, ...]

    def __post_init__(self) -> None:
        order = [list(SPECS).index(spec.op) for spec in self.operators]
        if order != sorted(set(order)):
            names = ", ".join(spec.op for spec in self.operators)
            raise UsageError(f"{self.name}: operators come once each, in the order {', '.join(SPECS)}; got {names}")
        for spec in self.operators:
            if spec.kind != self.kind:
                raise UsageError(f"{self.name}: operator {spec.op!r} does not apply to {self.kind} layers")

    def find(self, kind: type[Spec]) -> Spec | None:
        """The layer's operator of one kind, or None."""
        return next((cast(Spec, spec) for spec in self.operators if spec.op == kind.op), None)


@dataclass(frozen=True)
class Skipped:
    """A layer that is left as it is, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Reached:
    """What a budget asked to be left of the original's cost, and what its plan leaves.

    Attributes:
        unit: `macs`, `params` or `latency`.
        target, left: shares of the original's cost.
        interval: 95 % interval of `left` where it was timed, None where it was counted.
        backend: what ran the models that were timed, `batch_size` images at a time, in `dtype` (None: float32).
    """

    unit: str
    target: float
    left: float
    interval: tuple[float, float] | None = None
    backend: str | None = None
    batch_size: int | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Plan:
    """Everything needed to rebuild the structure of a converted model from its timm skeleton.

    Attributes:
        layers: what is done to which layer.
        skipped: layers left as they are.
        form: training or folded.
        version: of the format.
        merge_tokens: pairs of tokens that each block of a plain ViT merges, in order; empty for no merging.
        merge_by: what tokens are compared by; plans that do not say are of a time when it was their keys.
        reached: how the plan of a budget meets it; no part of the structure, and not written into files.
    """

    layers: tuple[LayerPlan, ...]
    skipped: tuple[Skipped, ...] = field(default=())
    form: Form = "training"
    version: int = PLAN_VERSION
    merge_tokens: tuple[int, ...] = ()
    merge_by: MergeBy = "tokens"
    reached: Reached | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if any(isinstance(r, bool) or not isinstance(r, int) or r < 0 for r in self.merge_tokens):
            raise UsageError(f"merge_tokens takes one number for each block, 0 or more, got {self.merge_tokens}")
        names = Counter(layer.name for layer in self.layers)
        if twice := next((name for name, count in names.items() if count > 1), None):
            raise UsageError(f"the plan has layer {twice!r} twice; all of its operators belong into one entry")

    def __repr__(self) -> str:
        return f"<{_line(self)}>"

    def __str__(self) -> str:
        return _table(self)

    def _repr_html_(self) -> str:
        return html_table(_line(self), *_rows(self))

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, which `Plan.load` and `vitcompact convert --plan FILE` read.

        Raises:
            UsageError: the disk refuses.
        """
        write_file(user_path(path), json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan from a JSON file, or from a document that holds one (such as what `convert --json` prints).

        Raises:
            UsageError: no such file, not JSON, or no plan.
        """
        try:
            data = read_json(user_path(path))
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or f"not JSON ({error})"
            raise UsageError(f"cannot read the plan {shortened(path)}: {reason}") from error
        inner = data.get("plan") if isinstance(data, dict) else None
        return cls.from_json(inner if isinstance(inner, dict) else data)

    def folded(self) -> Plan:
        """The same plan for the folded form, in which no branch and no explicit alpha is left."""
        return replace(self, form="folded")

    def layer(self, name: str) -> LayerPlan | None:
        """The plan of the layer at module path `name`, or None."""
        return next((layer for layer in self.layers if layer.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `Plan.from_json` reads it back to an equal plan."""
        layers = [
            {
                "name": layer.name,
                "kind": layer.kind,
                "operators": [spec.to_json() for spec in layer.operators],
            }
            for layer in self.layers
        ]
        document = {
            "version": self.version,
            "form": self.form,
            "layers": layers,
            "skipped": [asdict(skipped) for skipped in self.skipped],
        }
        merging = {"merge_tokens": list(self.merge_tokens), "merge_by": self.merge_by}
        return {**document, **merging} if self.merge_tokens else document

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Read a plan.

        Raises:
            UsageError: a version or an operator that this release does not know, or a malformed document.
        """
        version = data.get("version") if isinstance(data, Mapping) else None
        if type(version) is not int or version != PLAN_VERSION:
            raise UsageError(f"plan version {version!r} is not supported; this release reads version {PLAN_VERSION}")
        try:
            form = data.get("form", "training")
            if form not in ("training", "folded"):
                raise UsageError(f"plan form must be 'training' or 'folded', got {form!r}")
            known(data, "plan", ("version", "form", "layers", "skipped", "merge_tokens", "merge_by"))
            layers = tuple(_read_layer(layer) for layer in listed(data["layers"], "layers"))
            skipped = tuple(_read_skipped(item) for item in listed(data.get("skipped", []), "skipped"))
            merge_tokens = tuple(listed(data.get("merge_tokens", []), "merge_tokens"))
            merge_by = data.get("merge_by", "keys" if merge_tokens else "tokens")
            if merge_by not in get_args(MergeBy):
                raise UsageError(
                    f"plan merge_by must be one of {', '.join(get_args(MergeBy))}, got {shortened(repr(merge_by))}"
                )
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"malformed plan: {type(error).__name__}: {error}") from error
        return cls(layers, skipped, form, version, merge_tokens, merge_by)


def _read_layer(data: Mapping[str, Any]) -> LayerPlan:
    known(data, "layer", ("name", "kind", "operators"))
    kind = text(data, "kind")
    if kind not in get_args(LayerKind):
        raise UsageError(f"kind of a layer must be {' or '.join(get_args(LayerKind))}, got {kind!r}")
    operators = tuple(_read_operator(spec) for spec in listed(data["operators"], "operators"))
    return LayerPlan(text(data, "name"), cast(LayerKind, kind), operators)


def _read_skipped(data: Mapping[str, Any]) -> Skipped:
    known(data, "skipped", ("name", "reason"))
    return Skipped(text(data, "name"), text(data, "reason"))


def _read_operator(data: Mapping[str, Any]) -> OperatorSpec:
    if not isinstance(data, Mapping) or not isinstance(data.get("op"), str):
        raise UsageError("an operator must be an object with its name as op")
    op = ALIASES.get(data["op"], data["op"])
    if op not in SPECS:
        raise UsageError(f"unknown operator {op!r} in the plan; known: {', '.join(sorted(SPECS))}")
    return SPECS[op].from_json(data)


def _table(plan: Plan) -> str:
    """One line for each operator of each layer, then tokens merged and layers left alone by reason."""
    head, rows = _rows(plan)
    lines = [_line(plan), "", columns([head, *rows])]
    reasons = Counter(item.reason for item in plan.skipped)
    lines += ["", "left unchanged:"] if reasons else []
    return "\n".join([*lines, *(f"  {count} x {reason}" for reason, count in reasons.items())])


def _rows(plan: Plan) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings, and a row for each operator of each layer."""
    rows = [(layer.name, spec.op, _sizes(spec)) for layer in plan.layers for spec in layer.operators]
    rows += [(layer.name, "", "solved again") for layer in plan.layers if not layer.operators]
    if plan.merge_tokens:
        rows.append(("blocks", "merge tokens", ",".join(map(str, plan.merge_tokens))))
    return ("layer", "operator", "sizes"), list(rows)


def _line(plan: Plan) -> str:
    """How many layers get which operator, in one line."""
    counts = Counter(spec.op for layer in plan.layers for spec in layer.operators)
    parts = [f"{len(plan.layers)} layers", *(f"{op} x{count}" for op, count in counts.items())]
    if pairs := sum(plan.merge_tokens):
        parts.append(f"{pairs} pair{'s' * (pairs != 1)} of tokens merged")
    parts += [f"{len(plan.skipped)} left unchanged"] if plan.skipped else []
    if (reached := plan.reached) is not None:
        where = f" on {reached.backend}" if reached.backend not in (None, "torch") else ""
        where += f" in {reached.dtype}" if reached.dtype is not None else ""
        where += f", {reached.batch_size} images per batch" if reached.batch_size not in (None, 8) else ""
        parts.append(f"{reached.unit} {reached.left:.3g} of the original's{where}")
    return f"Plan ({plan.form}): {', '.join(parts)}"


def _sizes(spec: Any) -> str:
    """The fields of a spec that are not at their defaults: `rank=192`."""
    shown = ((field, getattr(spec, field.name)) for field in fields(spec))
    return " ".join(f"{field.name}={_value(v)}" for field, v in shown if field.default is MISSING or v != field.default)


def _value(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
