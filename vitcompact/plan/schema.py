"""The plan: what surgery does to which layer, as pure data (frozen, versioned, JSON in and out).

A plan is complete: a model's skeleton plus its plan gives every tensor's name and shape, so loading is
"build the timm model, replay the plan, load strictly". One layer may carry several operators, applied in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

from vitcompact.errors import UsageError

PLAN_VERSION = 1

Form = Literal["training", "folded"]
LayerKind = Literal["attention", "ffn"]


@dataclass(frozen=True)
class HallucinatedHead:
    """One head whose attention map is made from the maps of its `parents` (indices into the original heads)."""

    head: int
    parents: tuple[int, ...]


@dataclass(frozen=True)
class HallucinateSpec:
    """hMHSA of one attention layer: which heads keep Q and K, and what each other head's map is made of.

    `A_g = alpha * A_p + beta * I + gamma * J`, optionally filtered over the token grid (arXiv 2306.10875, section 3.2;
    the three terms are linear in the map and so commute with V).

    Attributes:
        num_heads: heads of the original layer.
        kept: heads that keep their own Q and K, in the order in which the new layer stores them.
        hallucinated: the other heads with their parents, in stored order.
        identity: an identity path (beta) on every value channel.
        mean: a path (gamma) from the mean of V over the keys allowed.
        filter_rank: rank of the 3x3 map filter, 0 for none.
    """

    op: ClassVar[str] = "hallucinate"
    kind: ClassVar[LayerKind] = "attention"
    num_heads: int
    kept: tuple[int, ...]
    hallucinated: tuple[HallucinatedHead, ...]
    identity: bool = False
    mean: bool = False
    filter_rank: int = 0

    def __post_init__(self) -> None:
        heads = sorted([*self.kept, *(h.head for h in self.hallucinated)])
        if heads != list(range(self.num_heads)) or not self.kept:
            raise UsageError(
                f"hallucinate: kept and hallucinated heads must be 0..{self.num_heads - 1} once each, got {heads}"
            )
        for child in self.hallucinated:
            if len(child.parents) != 1 or child.parents[0] not in self.kept:
                raise UsageError(
                    f"hallucinate: head {child.head} needs one kept head as its parent, got {list(child.parents)}"
                )
        if not 0 <= self.filter_rank <= 3:
            raise UsageError(f"hallucinate: filter_rank must be 0 to 3, got {self.filter_rank}")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> HallucinateSpec:
        heads = tuple(HallucinatedHead(int(h["head"]), tuple(map(int, h["parents"]))) for h in data["hallucinated"])
        return cls(
            num_heads=int(data["num_heads"]),
            kept=tuple(map(int, data["kept"])),
            hallucinated=heads,
            identity=bool(data.get("identity", False)),
            mean=bool(data.get("mean", False)),
            filter_rank=int(data.get("filter_rank", 0)),
        )


@dataclass(frozen=True)
class FactorizeSpec:
    """cFFN of one FFN: its hidden-to-output matrix as a product of two of inner size `rank`.

    Attributes:
        rank: inner size.
        branches: parallel re-parameterised branches of each factor; they exist in the training form only.
    """

    op: ClassVar[str] = "factorize"
    kind: ClassVar[LayerKind] = "ffn"
    rank: int
    branches: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.branches < 0:
            raise UsageError(f"factorize: rank must be at least 1 and branches at least 0, got {self}")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FactorizeSpec:
        return cls(rank=int(data["rank"]), branches=int(data.get("branches", 0)))


OperatorSpec = HallucinateSpec | FactorizeSpec
SPECS: dict[str, type[HallucinateSpec] | type[FactorizeSpec]] = {
    spec.op: spec for spec in (HallucinateSpec, FactorizeSpec)
}


@dataclass(frozen=True)
class LayerPlan:
    """The operators of one attention layer or FFN, named by its module path in the timm model."""

    name: str
    kind: LayerKind
    operators: tuple[OperatorSpec, ...]


@dataclass(frozen=True)
class Skipped:
    """A layer that is left as it is, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """Everything needed to rebuild the structure of a converted model from its timm skeleton.

    Attributes:
        layers: what is done to which layer.
        skipped: layers left as they are.
        form: training or folded.
        version: of the format.
        merge_tokens: pairs of tokens that each block of a plain ViT merges, in order; empty for no merging.
    """

    layers: tuple[LayerPlan, ...]
    skipped: tuple[Skipped, ...] = field(default=())
    form: Form = "training"
    version: int = PLAN_VERSION
    merge_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if any(isinstance(r, bool) or not isinstance(r, int) or r < 0 for r in self.merge_tokens):
            raise UsageError(f"merge_tokens takes one number for each block, 0 or more, got {self.merge_tokens}")

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
                "operators": [{"op": spec.op, **asdict(spec)} for spec in layer.operators],
            }
            for layer in self.layers
        ]
        document = {
            "version": self.version,
            "form": self.form,
            "layers": layers,
            "skipped": [asdict(skipped) for skipped in self.skipped],
        }
        return {**document, "merge_tokens": list(self.merge_tokens)} if self.merge_tokens else document

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Read a plan.

        Raises:
            UsageError: a version or an operator that this release does not know, or a malformed document.
        """
        version = data.get("version") if isinstance(data, Mapping) else None
        if version != PLAN_VERSION:
            raise UsageError(f"plan version {version!r} is not supported; this release reads version {PLAN_VERSION}")
        try:
            form = data.get("form", "training")
            if form not in ("training", "folded"):
                raise UsageError(f"plan form must be 'training' or 'folded', got {form!r}")
            layers = tuple(
                LayerPlan(layer["name"], layer["kind"], tuple(_read_operator(spec) for spec in layer["operators"]))
                for layer in data["layers"]
            )
            skipped = tuple(Skipped(item["name"], item["reason"]) for item in data.get("skipped", ()))
            merge_tokens = tuple(data.get("merge_tokens", ()))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"malformed plan: {type(error).__name__}: {error}") from error
        return cls(layers=layers, skipped=skipped, form=form, version=version, merge_tokens=merge_tokens)


def _read_operator(data: Mapping[str, Any]) -> OperatorSpec:
    op = data["op"]
    if op not in SPECS:
        raise UsageError(f"unknown operator {op!r} in the plan; known: {', '.join(sorted(SPECS))}")
    return SPECS[op].from_json(data)
