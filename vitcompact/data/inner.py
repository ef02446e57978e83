"""The timm model in what users hand over: bare, in the wrappers of training, or inside a module of their own."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.parallel import DistributedDataParallel

from vitcompact.data.batches import ImageBatches, TensorImages
from vitcompact.errors import DataError, UsageError

_WRAPPERS = (nn.DataParallel, DistributedDataParallel, ModelEmaV2, ModelEmaV3)
_ENTRIES = ("forward", "forward_features", "forward_intermediates", "get_intermediate_layers")
_RESULTS = ("vitcompact_plan", "vitcompact_fidelity", "vitcompact_parity", "vitcompact_merging")


@dataclass(frozen=True)
class Opened:
    """A timm model and where it stands.

    Attributes:
        model: the timm model.
        outer: the user's module around it, or the model itself.
        path: module path of the model in there, empty for the model itself.
    """

    model: nn.Module
    outer: nn.Module
    path: str = ""

    def images(self, given: Any, batch_size: int = 64) -> Any:
        """What reaches the timm model of images that the outer module takes; as they are where there is no outer one.

        Raises:
            UsageError: the timm model is not called with images.
            DataError: the outer module does not take them.
        """
        if not self.path or given is None:
            return given
        return TensorImages(list(self._reaching(given, batch_size)))

    def put_back(self, made: nn.Module) -> nn.Module:
        """A copy of the outer module with `made` itself in place of the model, and what that carries attached."""
        if not self.path:
            return made
        copied: nn.Module = copy.deepcopy(self.outer, {id(self.outer.get_submodule(self.path)): made})
        for name in _RESULTS:
            if hasattr(made, name):
                setattr(copied, name, getattr(made, name))
        return copied

    @torch.no_grad()
    def _reaching(self, given: Any, batch_size: int) -> Iterator[Tensor]:
        modes = [(module, module.training) for module in self.outer.modules()]
        self.outer.eval()
        weight = next(self.outer.parameters())
        try:
            for batch in _batches(given, batch_size):
                yield self._caught(batch.to(weight)).float().cpu()
        finally:
            for module, training in modes:
                module.training = training

    def _caught(self, batch: Tensor) -> Tensor:
        """The first argument of the model's first call; the outer module runs only that far."""

        def stop(x: Any, *_: Any, **__: Any) -> Any:
            raise _ReachedError(x)

        entries = [name for name in _ENTRIES if hasattr(self.model, name) and name not in vars(self.model)]
        for name in entries:
            setattr(self.model, name, stop)
        try:
            self.outer(batch)
        except _ReachedError as reached:
            if isinstance(reached.value, Tensor) and reached.value.ndim == 4:
                return reached.value
            raise UsageError(f"the timm model at `{self.path}` is called with something else than images") from None
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), "")
            raise DataError(
                f"this {type(self.outer).__name__} does not take the images: {type(error).__name__} {reason}"
            ) from error
        finally:
            for name in entries:
                delattr(self.model, name)
        raise UsageError(f"the timm model at `{self.path}` is not called when this {type(self.outer).__name__} runs")


class _ReachedError(Exception):
    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value


def unwrapped(model: Any) -> Any:
    """Without `torch.compile`, `DataParallel`, DDP and timm's EMA around it; anything else as it is."""
    while True:
        inner = getattr(model, "_orig_mod", None) if isinstance(model, nn.Module) else None
        if inner is None and isinstance(model, _WRAPPERS):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def open_model(model: Any, name: str = "model") -> Opened:
    """Find the one timm model in what was given.

    Args:
        name: of the parameter, for the message.

    Raises:
        UsageError: there is none, or more than one.
    """
    model = unwrapped(model)
    if not isinstance(model, nn.Module) or is_timm(model):
        return Opened(model, model)
    kind = type(model).__name__
    if isinstance(model, GraphModule):
        raise UsageError(
            f"{name} is an FX graph, in which the layers of its model are taken apart: convert the timm model it was "
            "made of, and make the graph of the result"
        )
    found = _inside(model)
    if len(found) > 1:
        paths = ", ".join(f"`{name}.{path}`" for path in found)
        raise UsageError(f"{name} is a {kind} with several timm models ({paths}): pass one of them, and put it back")
    if found:
        path, inner = next(iter(found.items()))
        return Opened(unwrapped(inner), model, path)
    if getattr(model, "feature_info", None) is not None:
        raise UsageError(
            f"{name} is a {kind}, a features_only model cut into its layers: convert the whole model, save it, and "
            "load that with features_only=True"
        )
    return Opened(model, model)


def is_timm(module: nn.Module) -> bool:
    """Whether a module is a whole model of timm's."""
    return hasattr(type(module), "forward_features")  # adapters around a model hand its attributes on


def _inside(model: nn.Module) -> dict[str, nn.Module]:
    """The outermost timm models by path, each once, with the wrappers of training around them."""
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if path and is_timm(unwrapped(module)) and not any(path.startswith(f"{outer}.") for outer in found):
            found[path] = module
    return found


def _batches(given: Tensor | Iterable[Any] | ImageBatches, batch_size: int) -> Iterator[Tensor]:
    for item in given.split(batch_size) if isinstance(given, Tensor) else given:
        batch = item[0] if isinstance(item, (tuple, list)) and item else item
        if not isinstance(batch, Tensor) or batch.ndim != 4 or not batch.dtype.is_floating_point:
            raise UsageError(f"each batch must be a normalised tensor (n, channels, height, width), got {_kind(batch)}")
        yield from batch.split(batch_size)


def _kind(value: object) -> str:
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
