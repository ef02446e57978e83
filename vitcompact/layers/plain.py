"""A switch to attention that builds its maps, for tools that look at them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from torch import nn

from vitcompact.layers.attention import CompactAttention

PLAIN = "plain"


@dataclass(frozen=True)
class Heads:
    """The heads of one attention layer, by their numbers in the original model.

    Attributes:
        kept: those that have a map of their own.
        hallucinated: those that have none, with the head whose map stands in for theirs.
    """

    kept: tuple[int, ...]
    hallucinated: Mapping[int, int]


class PlainAttention:
    """Attention layers that build the maps of all their heads; see `plain_attention`.

    Attributes:
        heads: of every layer in which heads are hallucinated, by its path in the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.heads: dict[str, Heads] = {}
        self._before: list[tuple[nn.Module, str, object]] = []
        for name, module in model.named_modules():
            if isinstance(module, CompactAttention):
                self.heads[name] = heads_of(module)
                self._set(module, "backend", PLAIN)
            elif isinstance(getattr(module, "fused_attn", None), bool):  # timm's own layers
                self._set(module, "fused_attn", False)

    def restore(self) -> None:
        """Give every layer back the way of computing that it had."""
        for module, attribute, value in reversed(self._before):
            setattr(module, attribute, value)
        self._before = []

    def __enter__(self) -> dict[str, Heads]:
        return self.heads

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def _set(self, module: nn.Module, attribute: str, value: object) -> None:
        self._before.append((module, attribute, getattr(module, attribute)))
        setattr(module, attribute, value)


def plain_attention(model: nn.Module) -> PlainAttention:
    """Make the attention layers of `model` build their maps, in place, until it is undone.

        with plain_attention(model) as heads:
            maps = timm.utils.AttentionExtract(model, method="hook")(images)

    Each layer then runs `softmax` and `attn_drop` on maps `(batch, heads, queries, keys)` of all heads of the original
    model, in its order, as timm's layers do that do not use fused attention (which are switched too). A hallucinated
    head shows the map of its parent; what is added to it (identity, mean, filters) acts on values and is in no map.
    Outputs are the same up to rounding; it is slower, and needs memory for the maps.

    Args:
        model: what `convert`, `fold` or `load` returned, or any timm model.

    Returns:
        What `with` takes: it gives which heads of which layer are hallucinated from which, and undoes the switch at the
        end. Without `with`, `heads` and `restore()` are the same.
    """
    return PlainAttention(model)


def heads_of(attention: CompactAttention) -> Heads:
    """Which heads of a layer have a map, and from which the others take theirs."""
    layout = attention.layout
    pairs = zip(layout.maps, layout.children, strict=True)
    return Heads(
        tuple(sorted(layout.maps)), {child: parent for parent, children in pairs for child in sorted(children)}
    )
