"""A file's tensors under timm's names, with the shapes that they have in the file.

timm converts the layouts of the original repositories by a function of each architecture, which also resamples what has
another size than the model. Here the names are converted and nothing is resampled: the model is then made to fit.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

import timm
import torch
from torch import Tensor, nn

from vitcompact.checkpoint.boxes import StateDict
from vitcompact.checkpoint.quiet import quiet_timm

FilterFn = Callable[[StateDict, nn.Module], StateDict]
_RESAMPLERS = ("resample_", "resize_rel_pos_bias_table")
_MIN_COVERED, _MAX_PREFIXES = 0.1, 12
_CHUNKED = re.compile(r"^blocks\.\d+\.(\d+)\.(?=\D)")


@dataclass(frozen=True)
class Layout:
    """Tensors under the names of a timm architecture.

    Attributes:
        state_dict: tensors by timm's names, as large as in the file.
        prefix: what stood before the names of the model in the file.
        outside: what does not begin with it, by the names in the file.
        share: share of the architecture's names that are there.
        dropped: modules of the file of which timm's conversion takes nothing.
        rivals: other prefixes behind which there are as many of them: the file holds several models.
    """

    state_dict: StateDict
    prefix: str = ""
    outside: Mapping[str, Tensor] = field(default_factory=dict)
    share: float = 0.0
    rivals: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


def find_filter(base: str) -> FilterFn | None:
    """The function with which timm converts foreign weights of an architecture.

    By timm's convention it is called `checkpoint_filter_fn` and lives in the module of the architecture.
    """
    function = getattr(_module_of(base), "checkpoint_filter_fn", None)
    return None if function is None else _with_layer_scale(function)


def to_layout(state_dict: Mapping[str, Tensor], base: str, model: nn.Module) -> Layout:
    """The layout under which most of the names of `model` are in the file.

    Args:
        state_dict: tensors by the names in the file.
        base: timm architecture whose conversions apply.
        model: the architecture, without memory; its names are what counts.
    """
    rename, expected = _renaming_filter(base), model.state_dict().keys()
    shapes = {name: torch.empty(tensor.shape, device="meta") for name, tensor in state_dict.items()}
    shares: dict[str, float] = {}
    for prefix in prefixes(state_dict):
        renamed = _converted(_below(shapes, prefix), rename, model)
        shares[prefix] = sum(name in renamed for name in expected) / max(len(expected), 1)
        if not prefix and shares[prefix] == 1:
            break
    best = max(shares, key=lambda prefix: shares[prefix])  # the first of equals, so the shortest
    rivals = (
        prefix
        for prefix, share in shares.items()
        if share == shares[best] and prefix != best and best and not prefix.startswith(best)
    )
    below = _below(state_dict, best)
    converted = _converted(below, rename, model)
    outside = {name: tensor for name, tensor in state_dict.items() if not name.startswith(best)}
    return Layout(converted, best, outside, shares[best], tuple(rivals), _dropped(below, converted))


def _dropped(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of tensors in those modules of which no memory is left: text towers, decoders, other heads."""
    kept = {tensor.untyped_storage().data_ptr() for tensor in after.values() if tensor.layout == torch.strided}
    modules: dict[str, list[str]] = defaultdict(list)
    used = set()
    for name, tensor in before.items():
        module, dot, _ = name.partition(".")
        if dot:
            modules[module].append(name)
        if tensor.layout != torch.strided or tensor.untyped_storage().data_ptr() in kept:
            used.add(module)
    return tuple(name for module, names in modules.items() if module not in used for name in names)


def _module_of(base: str) -> ModuleType:
    return sys.modules[timm.model_entrypoint(base).__module__]


def _with_layer_scale(function: Callable[..., StateDict]) -> FilterFn:
    if "adapt_layer_scale" in inspect.signature(function).parameters:
        return partial(function, adapt_layer_scale=True)  # as timm's deit module does; a no-op for other layouts
    return function


def _renaming_filter(base: str) -> FilterFn | None:
    """`find_filter` without the resampling, and without what it prints: the same code among other globals."""
    function = getattr(_module_of(base), "checkpoint_filter_fn", None)
    if not isinstance(function, FunctionType):
        return None
    return _with_layer_scale(_without_resampling(function))


def _without_resampling(function: FunctionType) -> FunctionType:
    names: dict[str, Any] = {**function.__globals__, "print": lambda *args, **kwargs: None}
    for name, value in function.__globals__.items():
        if name.startswith(_RESAMPLERS):
            names[name] = _unchanged
        elif isinstance(value, FunctionType) and value.__module__ == function.__module__:
            names[name] = _among(value, names)
    return _among(function, names)


def _among(function: FunctionType, names: dict[str, Any]) -> FunctionType:
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _unchanged(tensor: Tensor, *args: object, **kwargs: object) -> Tensor:
    return tensor


def prefixes(state_dict: Mapping[str, Tensor]) -> Iterator[str]:
    """What may stand before the names of a model, nothing first: dotted beginnings that many names share."""
    counts: Counter[str] = Counter()
    for name in state_dict:
        parts = name.split(".")
        counts.update(".".join(parts[:length]) + "." for length in range(1, min(len(parts), 6)))
    many = [prefix for prefix, count in counts.items() if count >= _MIN_COVERED * len(state_dict)]
    likely = sorted(sorted(many, key=counts.__getitem__, reverse=True)[:_MAX_PREFIXES], key=len)
    return iter(("", *likely))


def _below(state_dict: Mapping[str, Tensor], prefix: str) -> StateDict:
    if not prefix:
        return dict(state_dict)
    return {name[len(prefix) :]: tensor for name, tensor in state_dict.items() if name.startswith(prefix)}


def _converted(state_dict: StateDict, rename: FilterFn | None, model: nn.Module) -> StateDict:
    state_dict = _unchunked(state_dict, model)
    if rename is None:
        return state_dict
    try:
        with quiet_timm():
            try:
                return dict(rename(dict(state_dict), model))
            except TypeError:  # some take the weights only
                return dict(rename(dict(state_dict)))  # type: ignore[call-arg]
    except Exception:  # whatever a conversion makes of other names, they are compared as they are
        return state_dict


def _unchunked(state_dict: StateDict, model: nn.Module) -> StateDict:
    """DINOv2's training keeps blocks in chunks (`blocks.0.3.norm1`), numbered through."""
    if not any(map(_CHUNKED.match, state_dict)) or any(map(_CHUNKED.match, model.state_dict())):
        return state_dict
    return {_CHUNKED.sub(r"blocks.\1.", name): tensor for name, tensor in state_dict.items()}
