"""Each compacted layer of a model against its original, on the tokens that reach it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from vitcompact.benchmarking.result import LayerTime
from vitcompact.benchmarking.setup import Setup, weight_dtype
from vitcompact.errors import UsageError
from vitcompact.models.cost import count_modules
from vitcompact.models.latency import Call, wall_clock
from vitcompact.plans.schema import Plan
from vitcompact.utils.hooks import hooked
from vitcompact.utils.timing import relative_times

ROUNDS = 25


def check_layers(model: nn.Module, setup: Setup) -> None:
    """Refuse what has no layers to time.

    Raises:
        UsageError: another backend than eager PyTorch, or a model that was not converted.
    """
    if setup.backend != "torch":
        raise UsageError(f"`layers` are timed by PyTorch as it is: leave out `backend='{setup.backend}'`")
    if not _names(model):
        raise UsageError("`layers` are those that the plan of a converted model changed, and this model has none")


def layer_times(
    model: nn.Module, baseline: nn.Module, setup: Setup, shape: tuple[int, int, int, int], seed: int
) -> tuple[LayerTime, ...]:
    """Time the layers that the plan changed, the original's and the model's alternating.

    Args:
        shape: (batch, channels, height, width) of the images whose tokens the layers are run on.
    """
    names = [name for name in _names(model) if name in dict(baseline.named_modules())]
    images = setup.images(shape, seed)
    costs = [count_modules(each, names, shape[1:]) for each in (model, baseline)]
    with torch.inference_mode(), torch.autocast(setup.device.type, setup.amp_dtype, setup.amp_dtype is not None):
        calls = [_calls(each, names, images.to(weight_dtype(each))) for each in (baseline, model)]
        found = []
        for name in names:
            runs = [
                partial(wall_clock, each.get_submodule(name), call[name])
                for each, call in zip((baseline, model), calls, strict=True)
            ]
            seconds, (share,) = relative_times(runs, ROUNDS, warmup=3)
            ratio = costs[0][name].macs / max(costs[1][name].macs, 1)
            found.append(LayerTime(name, 1e3 * seconds * share, 1e3 * seconds, 1 / max(share, 1e-12), ratio))
    return tuple(found)


def _names(model: nn.Module) -> list[str]:
    plan: Any = getattr(model, "vitcompact_plan", None)
    return [layer.name for layer in plan.layers] if isinstance(plan, Plan) else []


def _calls(model: nn.Module, names: list[str], images: torch.Tensor) -> dict[str, Call]:
    """What each layer is called with in one run of the model."""
    found: dict[str, Call] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _, args, kwargs: found.update({name: Call(args, kwargs)})

    with hooked(model, {name: keep(name) for name in names}, before=True, with_kwargs=True):
        model(images)
    return found
