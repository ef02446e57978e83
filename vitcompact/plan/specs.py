"""One spec per operator: what is left of a layer, as pure data.

Sizes are enough to rebuild a layer's structure; which units or directions are kept is in the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from vitcompact.errors import UsageError

LayerKind = Literal["attention", "ffn"]


@dataclass(frozen=True)
class HallucinatedHead:
    """One head whose attention map is made from the maps of its `parents` (indices into the original heads)."""

    head: int
    parents: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.head}←{'+'.join(map(str, self.parents))}"


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
        conv: a 3x3 filter of every head's own values over the token grid.
        filter_rank: rank of the 3x3 map filter, 0 for none.
    """

    op: ClassVar[str] = "hallucinate"
    kind: ClassVar[LayerKind] = "attention"
    num_heads: int
    kept: tuple[int, ...]
    hallucinated: tuple[HallucinatedHead, ...]
    identity: bool = False
    mean: bool = False
    conv: bool = False
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
            conv=bool(data.get("conv", False)),
            filter_rank=int(data.get("filter_rank", 0)),
        )


@dataclass(frozen=True)
class ThinQkSpec:
    """Narrower queries and keys of every softmax map: `Q_h K_h^T` of rank `qk_dim`."""

    op: ClassVar[str] = "thin-qk"
    kind: ClassVar[LayerKind] = "attention"
    qk_dim: int

    def __post_init__(self) -> None:
        _at_least_one("thin-qk", "qk_dim", self.qk_dim)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ThinQkSpec:
        return cls(int(data["qk_dim"]))


@dataclass(frozen=True)
class ThinVoSpec:
    """Narrower values of every head: the value-output product `W_v^h W_o^h` of rank `v_dim`."""

    op: ClassVar[str] = "thin-vo"
    kind: ClassVar[LayerKind] = "attention"
    v_dim: int

    def __post_init__(self) -> None:
        _at_least_one("thin-vo", "v_dim", self.v_dim)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ThinVoSpec:
        return cls(int(data["v_dim"]))


@dataclass(frozen=True)
class NeuronsSpec:
    """Fewer hidden units of an FFN: `hidden` of them are left."""

    op: ClassVar[str] = "neurons"
    kind: ClassVar[LayerKind] = "ffn"
    hidden: int

    def __post_init__(self) -> None:
        _at_least_one("neurons", "hidden", self.hidden)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NeuronsSpec:
        return cls(int(data["hidden"]))


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


def _at_least_one(op: str, name: str, value: int) -> None:
    if value < 1:
        raise UsageError(f"{op}: {name} must be at least 1, got {value}")


OperatorSpec = HallucinateSpec | ThinQkSpec | ThinVoSpec | NeuronsSpec | FactorizeSpec
SPECS: dict[str, type[OperatorSpec]] = {
    spec.op: spec for spec in (HallucinateSpec, ThinQkSpec, ThinVoSpec, NeuronsSpec, FactorizeSpec)
}
"""Every operator, in the order in which those of one layer are applied."""
