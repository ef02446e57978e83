"""Which block saves what, by operator: counted on structures without data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from vitcompact.data import resolve_input
from vitcompact.models import inspect
from vitcompact.models.cost import Cost, count_modules, meta_copy
from vitcompact.operators import MODEL_OPERATORS, OPERATORS
from vitcompact.operators.replay import replay
from vitcompact.plans.schema import Plan


def savings(model: nn.Module, plan: Plan) -> dict[str, Any]:
    """MACs an image that each block saves.

    The operators of the plan are put on one after the other, in the order in which layers take them, and the
    difference is what each one saves: so the sum over all of them is exact, but for the little that matching tokens
    costs outside of the layers.

    Returns:
        `whole`, the MACs of the model; `saved`, of these; and `blocks` in forward order: `name`, and `saved` MACs by
        operator.
    """
    anatomy, size = inspect(model), resolve_input(model).input_size
    blocks = {site.name: site.block or site.name for site in anatomy.sites}
    before = _macs(count_modules(model, ["", *blocks], size))
    whole = left = before[""]
    found: dict[str, dict[str, int]] = {block: {} for block in dict.fromkeys(blocks.values())}
    for name, partial in _steps(plan):
        after = _macs(count_modules(replay(meta_copy(model), partial.folded()), ["", *blocks], size, spent=True))
        for site, block in blocks.items():
            if saved := before[site] - after[site]:
                found[block][name] = found[block].get(name, 0) + saved
        before, left = after, after[""]
    ordered = [{"name": name, "saved": saved} for name, saved in _in_order(model, found)]
    return {"whole": whole, "saved": whole - left, "blocks": ordered}


def _steps(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """Plans with more and more of the operators, each named after the one that came last."""
    used = {spec.op for layer in plan.layers for spec in layer.operators}
    seen: set[str] = set()
    bare = replace(plan, merge_tokens=())
    for name in OPERATORS:
        if name in used:
            seen.add(name)
            kept = (
                replace(layer, operators=tuple(spec for spec in layer.operators if spec.op in seen))
                for layer in plan.layers
            )
            yield name, replace(bare, layers=tuple(layer for layer in kept if layer.operators))
    for operator in MODEL_OPERATORS:
        if operator.label(plan):
            yield operator.name, plan


def _macs(costs: dict[str, Cost]) -> dict[str, int]:
    return {name: cost.macs for name, cost in costs.items()}


def _in_order(model: nn.Module, found: dict[str, dict[str, int]]) -> list[tuple[str, dict[str, int]]]:
    """Blocks as they lie in the model; sites are listed by kind."""
    place = {name: i for i, (name, _) in enumerate(model.named_modules())}
    return sorted(found.items(), key=lambda item: place.get(item[0], 0))
