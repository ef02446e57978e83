"""Variance-based pruning (arXiv 2507.12988), implemented from the paper.

Mean and variance of every hidden unit of the FFNs are measured after the activation; the units of smallest variance of
all layers together are removed, and their means times their weights go into the bias of the output layer.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from .common import Calibration, macs_of, nearest, replace_linear

MULTIPLE = 8
"""Hidden widths are rounded up to multiples of this, which kernels like; a unit more costs next to nothing."""


@dataclass
class UnitStatistics:
    """Mean and variance of the hidden units of one FFN, `(hidden,)` each."""

    mean: Tensor
    variance: Tensor


def prune(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """The model without its least varying hidden units."""
    statistics = measure(model, calibration)
    units = sum(len(layer.mean) for layer in statistics.values())
    step = max(1, units // 512)
    amount = nearest(
        lambda removed: macs_of(without(model, statistics, removed)), range(0, units, step), macs_of(model), target
    )
    return without(model, statistics, amount)


@torch.no_grad()
def measure(model: nn.Module, calibration: Calibration) -> dict[str, UnitStatistics]:
    """Statistics of the input of each FFN's output layer, over all tokens."""
    model = copy.deepcopy(model).eval()
    sums: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, Mlp):
            hidden = module.fc2.in_features
            sums[name], counts[name] = [torch.zeros(hidden, dtype=torch.float64) for _ in range(2)], 0

            def add(module: nn.Module, args: tuple[Tensor], name: str = name) -> None:
                x = args[0].flatten(0, -2).double()
                sums[name][0] += x.sum(dim=0)
                sums[name][1] += x.square().sum(dim=0)
                counts[name] += len(x)

            module.fc2.register_forward_pre_hook(add)
    for images, _ in calibration.batches():
        model(images)
    means = {name: first / counts[name] for name, (first, _) in sums.items()}
    return {
        name: UnitStatistics(means[name], second / counts[name] - means[name].square())
        for name, (_, second) in sums.items()
    }


def without(model: nn.Module, statistics: dict[str, UnitStatistics], removed: int) -> nn.Module:
    """A copy of `model` without (about) `removed` hidden units, the least varying of all layers."""
    model = copy.deepcopy(model)
    every = torch.cat([layer.variance for layer in statistics.values()])
    threshold = every.sort().values[removed]
    for name, layer in statistics.items():
        number = int((layer.variance >= threshold).sum())
        number = min(max(MULTIPLE, -(-number // MULTIPLE) * MULTIPLE), len(layer.variance))
        order = layer.variance.argsort(descending=True, stable=True)
        kept, gone = order[:number].sort().values, order[number:]
        mlp = model.get_submodule(name)
        assert isinstance(mlp, Mlp)
        with torch.no_grad():
            shift = mlp.fc2.weight[:, gone].double() @ layer.mean[gone]
            mlp.fc1, mlp.fc2 = replace_linear(mlp.fc1, kept, None), replace_linear(mlp.fc2, None, kept)
            mlp.fc2.bias.add_(shift.to(mlp.fc2.bias))
    return model
