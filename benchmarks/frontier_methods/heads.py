"""Whole heads removed by their importance: Michel et al. 2019, "Are Sixteen Heads Really Better than One?".

The importance of a head is the mean over images of `|dL/d xi|`, `xi` a gate on its output (their equation 2), each
layer's scores divided by their l2 norm as they recommend. All heads of the model are ranked together; every layer
keeps at least one. Labels are used where the model has a head.
"""

from __future__ import annotations

import copy

import torch
from timm.layers import Attention
from torch import Tensor, nn

from .common import Calibration, macs_of, nearest, replace_linear, task_loss


def remove_heads(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """The model with the least important heads of all layers gone."""
    scores = importance(model, calibration)
    order = _ranking(scores)
    amount = nearest(
        lambda removed: macs_of(without(model, order[:removed])), range(len(order) + 1), macs_of(model), target
    )
    return without(model, order[:amount])


def importance(model: nn.Module, calibration: Calibration) -> dict[str, Tensor]:
    """For each attention layer, the importance `(heads,)` of its heads, of unit norm."""
    model = copy.deepcopy(model).eval()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Attention)}
    scores = {name: torch.zeros(layer.num_heads, dtype=torch.float64) for name, layer in layers.items()}
    outputs: dict[str, Tensor] = {}
    for name, layer in layers.items():

        def keep(module: nn.Module, args: tuple[Tensor], name: str = name) -> None:
            args[0].retain_grad()
            outputs[name] = args[0]

        layer.proj.register_forward_pre_hook(keep)
    for number, (images, labels) in enumerate(calibration.batches()):
        task_loss(model, images, labels, calibration.seed + number).backward()
        for name, x in outputs.items():
            assert x.grad is not None
            gates = (x.detach() * x.grad).unflatten(-1, (len(scores[name]), -1)).sum(dim=(1, 3))
            scores[name] += gates.abs().sum(dim=0).double()
        model.zero_grad()
    return {name: score / score.norm().clamp_min(1e-30) for name, score in scores.items()}


def without(model: nn.Module, removed: list[tuple[str, int]]) -> nn.Module:
    """A copy of `model` without the heads `(layer, head)`; timm's attention runs any number of heads."""
    model = copy.deepcopy(model)
    for name in {name for name, _ in removed}:
        layer = model.get_submodule(name)
        assert isinstance(layer, Attention)
        gone = {head for other, head in removed if other == name}
        kept = torch.tensor([head for head in range(layer.num_heads) if head not in gone])
        columns = (kept[:, None] * layer.head_dim + torch.arange(layer.head_dim)).flatten()
        rows = torch.cat([part * layer.attn_dim + columns for part in range(3)])
        layer.qkv, layer.proj = replace_linear(layer.qkv, rows, None), replace_linear(layer.proj, None, columns)
        layer.num_heads, layer.attn_dim = len(kept), len(columns)
    return model


def _ranking(scores: dict[str, Tensor]) -> list[tuple[str, int]]:
    """Heads that may go, least important first: the best one of each layer stays."""
    heads = [
        (float(score), name, head)
        for name, layer in scores.items()
        for head, score in enumerate(layer)
        if head != int(layer.argmax())
    ]
    return [(name, head) for _, name, head in sorted(heads)]
