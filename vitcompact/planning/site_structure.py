"""What a site's time depends on: its structure and how it is called, before and after operators."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vitcompact.models import AttentionSite, Site
from vitcompact.models.latency import Call
from vitcompact.operators import OPERATORS
from vitcompact.operators.replay import build_layer
from vitcompact.plans.schema import LayerPlan, Plan
from vitcompact.plans.specs import OperatorSpec
from vitcompact.utils.hooks import hooked

Operators = tuple[OperatorSpec, ...]


def alike(operators: Operators) -> Operators:
    """The operators without what plays no part in the folded layer's time: who is whose parent, and branches."""
    return tuple(OPERATORS[spec.op].timed_as(spec) for spec in operators)


@torch.no_grad()
def built(module: nn.Module, site: Site, operators: Operators) -> nn.Module:
    """The site's module as it runs once folded, with the values that copying gives; `module` is left as it is."""
    holder = nn.Module()
    holder.add_module("site", copy.deepcopy(module))
    if isinstance(site, AttentionSite):
        alone: Site = replace(site, name="site", scale=None, norm=None)
    else:
        alone = replace(site, name="site", scale=None, norm=None, output=f"site{site.output[len(site.name) :]}")
    layer = LayerPlan("site", site.kind, operators)
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

    hooks = {name: keep(name) for name in names}
    with hooked(model, hooks, before=True, with_kwargs=True), torch.inference_mode():
        model(images)
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
