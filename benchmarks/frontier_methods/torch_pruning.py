"""Torch-Pruning (`pip install torch-pruning`, 1.6) with the settings it recommends for timm's ViTs.

Its examples/transformers recommend `GroupTaylorImportance` with the meta pruner, gradients of ten batches of 64, the
same ratio in every layer. Of its two variants this is "bottleneck" (head and hidden dimensions are pruned, the residual
width stays): the other one changes the width of the features, which cannot be compared or distilled block by block.

Where this departs from the example, in its favour: dimensions are rounded to multiples of 8 (not 2), attention stays
timm's own fused one (this timm runs it for any head width), and queries are rescaled so that logits keep their scale.
"""

from __future__ import annotations

import copy
import warnings

import torch
from timm.layers import Attention, Mlp
from torch import nn

from vitcompact.data import resolve_input

from .common import Calibration, macs_of, nearest, task_loss

TAYLOR_BATCHES = 10
ROUND_TO = 8
STEPS = 64


def prune(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """The model with the least important head and hidden dimensions gone.

    Raises:
        ImportError: torch-pruning is not installed.
    """
    return _pruned(model, _ratio(model, target), calibration)


def shapes(model: nn.Module, target: float) -> nn.Module:
    """The same model's shapes, for timing: which dimensions go is left to chance."""
    return _pruned(model, _ratio(model, target), None)


def _ratio(model: nn.Module, target: float) -> float:
    """The ratio decides the widths whatever the importance is, so the search needs no gradients."""
    steps = range(STEPS)
    return nearest(lambda step: macs_of(_pruned(model, step / STEPS, None)), steps, macs_of(model), target) / STEPS


def _pruned(model: nn.Module, ratio: float, calibration: Calibration | None) -> nn.Module:
    import torch_pruning

    model = copy.deepcopy(model).eval().requires_grad_(True)
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    widths = {layer: layer.head_dim for layer in layers}
    importance = torch_pruning.importance.RandomImportance()
    if calibration is not None:
        importance = torch_pruning.importance.GroupTaylorImportance()
        _accumulate_gradients(model, calibration)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    ignored = [module.fc2 for module in model.modules() if isinstance(module, Mlp)]
    head = getattr(model, "head", None)
    ignored += [head] if isinstance(head, nn.Linear) else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.BasePruner(
            model,
            torch.randn(1, *resolve_input(model).input_size),
            importance=importance,
            pruning_ratio=ratio,
            ignored_layers=ignored,
            num_heads={layer.qkv: layer.num_heads for layer in layers},
            prune_head_dims=True,
            round_to=ROUND_TO,
        )
        for name, parameter in model.named_parameters():  # tracing may clear them
            parameter.grad = gradients[name]
        pruner.step()
    for layer in layers:
        _set_widths(layer, widths[layer])
    model.zero_grad()
    return model


def _accumulate_gradients(model: nn.Module, calibration: Calibration) -> None:
    for number, (images, labels) in enumerate(calibration.batches()):
        if number == TAYLOR_BATCHES:
            break
        (task_loss(model, images, labels, calibration.seed + number) / len(images)).backward()


def _set_widths(layer: Attention, before: int) -> None:
    """Tell timm's attention its new width; it scales logits by that width, so queries make up for the difference."""
    layer.attn_dim = layer.proj.in_features
    layer.head_dim = layer.attn_dim // layer.num_heads
    factor = (layer.head_dim / before) ** 0.5
    with torch.no_grad():
        for parameter in layer.qkv.parameters():
            parameter[: layer.attn_dim] *= factor
    layer.scale = layer.head_dim**-0.5
