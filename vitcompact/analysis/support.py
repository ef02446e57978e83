"""What of one model is compacted, layer by layer, and why the rest is not; nothing is measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from vitcompact.data import open_model
from vitcompact.errors import UsageError
from vitcompact.models import Site, inspect
from vitcompact.models.attention_classes import class_name
from vitcompact.operators import OPERATORS
from vitcompact.operators.merge import merge_schedule
from vitcompact.plans.specs import LayerKind


@dataclass(frozen=True)
class LayerSupport:
    """One layer.

    Attributes:
        name: module path.
        block: module path of the block around it; empty for what is left alone.
        kind: `attention` or `ffn`; None for what is left alone.
        layer: its class, as timm has it.
        operators: what can be done to it.
        reason: why nothing can; empty where something can.
    """

    name: str
    block: str
    kind: LayerKind | None
    layer: str
    operators: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Support:
    """A model's layers in forward order of their kinds, and why its tokens cannot be merged (empty: they can)."""

    layers: tuple[LayerSupport, ...]
    no_merging: str = ""

    def to_json(self) -> dict[str, Any]:
        """Keys: layers, merging (supported, reason)."""
        merging = {"supported": not self.no_merging, "reason": self.no_merging}
        return {"layers": [asdict(layer) for layer in self.layers], "merging": merging}


def support(model: nn.Module) -> Support:
    """What of a timm model can be compacted.

    Raises:
        NothingToCompactError: nothing; the message says why.
        UsageError: it is compacted already.
    """
    model = open_model(model).model
    if getattr(model, "vitcompact_plan", None) is not None:
        raise UsageError("this model is compacted already; ask about the original")
    anatomy = inspect(model)
    layers = [_of_site(model, site) for site in anatomy.sites]
    layers += [
        LayerSupport(item.name, "", None, _layer(model, item.name), reason=item.reason) for item in anatomy.skipped
    ]
    return Support(tuple(layers), _no_merging(model))


def _of_site(model: nn.Module, site: Site) -> LayerSupport:
    found = {name: each for name, each in OPERATORS.items() if each.kind == site.kind}
    able = tuple(name for name, each in found.items() if each.sizes(model, site))
    reason = "" if able else "too small: no size of it is smaller than it is"
    return LayerSupport(site.name, site.block, site.kind, _layer(model, site.name), able, reason)


def _layer(model: nn.Module, name: str) -> str:
    return class_name(type(model.get_submodule(name)))


def _no_merging(model: nn.Module) -> str:
    try:
        merge_schedule(model, 1)
    except UsageError as error:
        return str(error)
    return ""
