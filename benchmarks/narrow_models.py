"""A timm architecture with its own options, but fewer and narrower blocks and small images: to run many of them.

timm's entrypoints fix their sizes in many ways; all of them end in `build_model_with_cfg`, whose arguments are changed
here while a model is built (or built again, on loading).
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import timm
import torch
from torch import nn

from vitcompact.errors import NothingToCompactError
from vitcompact.layers.pointwise import matrix
from vitcompact.models import inspect as anatomy_of
from vitcompact.models.attention_classes import class_name
from vitcompact.models.cores import parts_of

DEPTHS = ("depth", "depths", "layers", "stages", "num_blocks", "d")
WIDTHS = ("embed_dim", "embed_dims", "dims", "width_list", "inner_dim", "neck_chans", "c")
NARROWEST, NARROWEST_HEAD = 12, 4
SIZES = (64, 56, 96, 128, 160, 192, 224, 256, 288, 320, 384)


@dataclasses.dataclass(frozen=True)
class Narrowing:
    """How far an architecture is cut down.

    Attributes:
        depth: blocks of a stage at most; 0: all of them.
        width: channels are divided by this.
        size: side of the images; 0: the architecture's own.
    """

    depth: int
    width: int
    size: int = 0

    def argument(self, name: str, value: Any) -> Any:
        """An argument of a model class, cut down if it counts blocks or channels."""
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = [field.name for field in dataclasses.fields(value) if field.init]
            return dataclasses.replace(value, **{each: self.argument(each, getattr(value, each)) for each in names})
        if isinstance(value, tuple | list) and any(map(dataclasses.is_dataclass, _leaves(value))):
            return type(value)(self.argument(name, each) for each in value)
        if name in DEPTHS and self.depth:
            return _each(value, lambda number: min(number, self.depth))
        if name in WIDTHS and self.width > 1:
            return _each(value, lambda number: number // self.width)
        return value


def _leaves(value: Any) -> list[Any]:
    return [leaf for each in value for leaf in _leaves(each)] if isinstance(value, tuple | list) else [value]


def _each(value: Any, change: Callable[[int], int]) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_each(item, change) for item in value)
    return change(value) if isinstance(value, int) and not isinstance(value, bool) else value


WHOLE = Narrowing(0, 1)
CHOICES = (*(Narrowing(2, width) for width in (8, 4, 2, 1)), WHOLE)


@contextmanager
def narrowed(how: Narrowing) -> Iterator[None]:
    """While inside, timm builds its architectures cut down."""
    with ExitStack() as stack:
        for module in [m for name, m in sys.modules.items() if name.startswith("timm.models.")]:
            build = vars(module).get("build_model_with_cfg")
            if build is not None and not module.__name__.endswith("._builder"):
                stack.enter_context(mock.patch.object(module, "build_model_with_cfg", _changed(build, how)))
        yield


def _changed(build: Callable[..., nn.Module], how: Narrowing) -> Callable[..., nn.Module]:
    def narrow(model_cls: Any, variant: str, pretrained: bool, *args: Any, **kwargs: Any) -> nn.Module:
        kwargs = {name: how.argument(name, value) for name, value in kwargs.items()}
        if how.size and "img_size" in inspect.signature(model_cls).parameters:
            kwargs["img_size"] = how.size
        return build(model_cls, variant, pretrained, *args, **kwargs)

    return narrow


def kinds(model: nn.Module) -> set[str]:
    """What there is to compact in a model: classes of the layers and whether they are left alone."""
    try:
        anatomy = anatomy_of(model)
    except NothingToCompactError:
        return set()
    sites = [(site.kind, class_name(type(model.get_submodule(site.name)))) for site in anatomy.sites]
    return {" ".join(each) for each in sites}


def too_narrow(model: nn.Module) -> bool:
    """Whether an FFN is so narrow that no product of two matrices is smaller, or a head so that it hardly is one."""
    anatomy = anatomy_of(model)
    heads = any(parts_of(model, site).v_dim < NARROWEST_HEAD for site in anatomy.attention)
    return heads or any(min(matrix(model.get_submodule(site.output))[0].shape) < NARROWEST for site in anatomy.ffn)


def create(name: str, how: Narrowing, **kwargs: Any) -> nn.Module:
    """An architecture cut down, with random weights; images are of `how.size`."""
    overlay = {"input_size": (3, how.size, how.size)} if how.size else None
    with narrowed(how):
        return timm.create_model(name, pretrained=False, pretrained_cfg_overlay=overlay, **kwargs)


def narrowest(name: str) -> Narrowing:
    """How far an architecture can be cut down so that it still has every kind of layer.

    Raises:
        RuntimeError: not even the whole one runs.
    """
    with torch.device("meta"):
        wanted = kinds(create(name, WHOLE))
    own = timm.get_pretrained_cfg(name).input_size[-1]
    error: Exception | None = None
    for choice in CHOICES:
        for size in (*(size for size in SIZES if size < own), own):
            how = dataclasses.replace(choice, size=size)
            try:
                with torch.device("meta"):
                    model = create(name, how).eval()
                    found = kinds(model)
                    if found != wanted or (choice.width > 1 and too_narrow(model)):
                        break  # whatever the size
                    model(torch.empty(2, 3, size, size))
            except Exception as refusal:  # any of a thousand models may refuse in its own way: the next choice
                error = refusal
                continue
            return how
    raise RuntimeError(f"cannot be run: {error}")
