"""What a site's time depends on: its structure and how it is called, before and after operators."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vitcompact.calibration.capture import Site
from vitcompact.models import AttentionSite
from vitcompact.models.latency import Call
from vitcompact.operators.hallucinate import make_spec
from vitcompact.operators.replay import build_layer
from vitcompact.options.surgery import TERMS
from vitcompact.plan.schema import LayerPlan, Plan
from vitcompact.plan.specs import FactorizeSpec, HallucinateSpec, OperatorSpec

Operators = tuple[OperatorSpec, ...]


def alike(operators: Operators) -> Operators:
    """The operators without what plays no part in the folded layer's time: who is whose parent, and branches."""
    return tuple(_alike(spec) for spec in operators)


def _alike(spec: OperatorSpec) -> OperatorSpec:
    if isinstance(spec, FactorizeSpec):
        return replace(spec, branches=0)
    if isinstance(spec, HallucinateSpec):
        place = {head: i for i, head in enumerate(spec.kept)}
        parents = {len(spec.kept) + i: place[child.parents[0]] for i, child in enumerate(spec.hallucinated)}
        terms = tuple(term for term in TERMS if getattr(spec, term))
        return make_spec(spec.num_heads, parents, terms, spec.filter_rank)
    return spec


@torch.no_grad()
def built(module: nn.Module, site: Site, operators: Operators) -> nn.Module:
    """The site's module as it runs once folded, with the values that copying gives; `module` is left as it is."""
    holder = nn.Module()
    holder.add_module("site", copy.deepcopy(module))
    if isinstance(site, AttentionSite):
        alone: Site = replace(site, name="site", scale=None, norm=None)
    else:
        alone = replace(site, name="site", scale=None, norm=None, output=f"site{site.output[len(site.name) :]}")
    layer = LayerPlan("site", "attention" if isinstance(site, AttentionSite) else "ffn", operators)
    build_layer(holder, alone, layer, Plan((layer,), form="folded"))
    return holder.get_submodule("site").eval()


def recorded(
    model: nn.Module, names: Iterable[str], images: Tensor
) -> tuple[dict[str, Hashable], dict[Hashable, Call]]:
    """One forward pass over `images`: the structure of each named module, and one call of each structure.

    Modules of the same classes, sizes and settings that are called with tensors of the same shapes are of the same
    structure.
    """
    structures: dict[str, Hashable] = {}
    calls: dict[Hashable, Call] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            structures[name] = (_settings(module), _shapes(args), _shapes(kwargs))
            calls.setdefault(structures[name], Call(args, kwargs))

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(keep(name), with_kwargs=True) for name in names]
    try:
        with torch.inference_mode():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return structures, calls


def _settings(module: nn.Module) -> Hashable:
    """Classes, shapes of parameters, and numbers and flags (heads, windows, strides) of a module and its children."""
    parts = []
    for name, part in module.named_modules():
        own = {key: value for key, value in vars(part).items() if not key.startswith("_") and _plain(value)}
        tensors = tuple((key, tuple(value.shape)) for key, value in part.named_parameters(recurse=False))
        parts.append((name, type(part), tuple(sorted(own.items())), tensors))
    return tuple(parts)


def _plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _shapes(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, dict):
        return tuple((key, _shapes(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(_shapes(item) for item in value)
    known: Hashable = value if _plain(value) else type(value).__name__
    return known
