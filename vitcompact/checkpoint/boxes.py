"""State dicts in what a training script saved, wherever it put them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from vitcompact.checkpoint.claims import Search
from vitcompact.checkpoint.inert import attributes_of
from vitcompact.errors import UsageError
from vitcompact.utils.text import some

StateDict = dict[str, Tensor]
# Where training scripts put the weights; averaged (EMA) weights first, as timm does.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_TRAINING = ("optim", "lr_sched", "scheduler", "scaler", "amp", "callbacks", "loops", "rng", "random")
_DEPTH = 4
_WRAPPING_MODULES = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def find_boxes(content: Mapping[Any, Any]) -> dict[str, StateDict]:
    """Every mapping of names to tensors in `content`, by the keys that lead to it (`a.b`; empty for itself).

    What optimizers and the like keep is left out, and so are prefixes of modules that wrap others.

    Raises:
        CheckpointError: it goes in circles, or has the same dictionaries again and again.
    """
    return dict(_boxes(content, "", _DEPTH, Search()))


def choose_key(keys: Iterable[str], label: str) -> str:
    """The one to take among several state dicts that would do, by timm's order of preference.

    Raises:
        UsageError: that is not for us to say.
    """
    keys = list(keys)
    if len(keys) == 1:
        return keys[0]
    known = [key for key in WRAPPERS if key in keys]
    if len(known) == len(keys):
        return known[0]
    listed = some([f"`state_key='{key}'`" for key in sorted(keys) if key])
    raise UsageError(f"{label} holds several models; say which: {listed}")


def select_box(boxes: Mapping[str, StateDict], key: str, label: str) -> StateDict:
    """The state dict under `key`, which may go on into the names of its tensors (`teacher.backbone`).

    Raises:
        UsageError: there is none.
    """
    if key in boxes:
        return boxes[key]
    for name in sorted(boxes, key=len, reverse=True):
        rest = key if not name else key.removeprefix(f"{name}.")
        if name and rest == key:
            continue
        if found := _below(boxes[name], rest):
            return found
    inside = {name: _below(box, key) for name, box in boxes.items()}
    matching = [found for found in inside.values() if found]
    if len(matching) == 1:  # what its names begin with, the key before it left out
        return matching[0]
    known = some([repr(name) for name in sorted(boxes) if name]) or "none: all tensors are at the top"
    raise UsageError(f"{label} holds no state dict {key!r} (`state_key`); it has: {known}")


def _below(box: StateDict, key: str) -> StateDict:
    """The tensors whose names begin with `key.`, without it."""
    prefix = key.rstrip(".") + "."
    return {name[len(prefix) :]: tensor for name, tensor in box.items() if name.startswith(prefix)}


def _boxes(content: Mapping[Any, Any], key: str, depth: int, search: Search) -> Iterator[tuple[str, StateDict]]:
    search.enter(len(content))
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    tensors = tensors or dict(_module_tensors(content, "", 0, search))
    if tensors and all(isinstance(name, str) for name in content):
        yield key, _unwrapped(tensors)
    if depth:
        for name, value in content.items():
            if isinstance(name, str) and isinstance(value, Mapping) and not name.lower().startswith(_TRAINING):
                yield from _boxes(value, f"{key}.{name}" if key else name, depth - 1, search)


def _module_tensors(module: object, prefix: str, depth: int, search: Search) -> Iterator[tuple[str, Tensor]]:
    """The state dict of a module that was pickled whole: of its attributes, those that make one."""
    attributes = attributes_of(module)
    kinds = [attributes.get(name) for name in ("_parameters", "_buffers", "_modules")]
    if not all(isinstance(kind, Mapping) for kind in kinds):
        return
    search.enter(sum(len(kind) for kind in kinds if kind), depth)
    unsaved = attributes.get("_non_persistent_buffers_set") or ()
    for name, tensor in {**attributes["_parameters"], **attributes["_buffers"]}.items():
        if isinstance(tensor, Tensor) and name not in unsaved:
            yield f"{prefix}{name}", tensor
    for name, inner in attributes["_modules"].items():
        yield from _module_tensors(inner, f"{prefix}{name}.", depth + 1, search)


def _unwrapped(tensors: StateDict) -> StateDict:
    """Names without the modules that data parallel training, compilation, FSDP and recomputation wrap around others."""
    plain: StateDict = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        kept = [part for part in parts if part not in _WRAPPING_MODULES]
        while len(kept) > 1 and kept[0] == "module":
            kept = kept[1:]
        plain[".".join(kept)] = tensor
    return plain if len(plain) == len(tensors) else tensors
