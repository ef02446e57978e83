"""What the hidden units of an FFN are made of: which layers produce them."""

from __future__ import annotations

from torch import nn

from vitcompact.layers.pointwise import is_pointwise_map

HIDDEN_LAYERS = ("fc1", "fc1_g", "fc1_x", "dwconv")
"""Layers with one output per hidden unit, by timm's names (timm/layers/mlp.py, timm/models/pvt_v2.py).

A packed GLU stacks two halves in `fc1`; a depthwise convolution follows each unit alone.
"""


def hidden_layers(ffn: nn.Module) -> tuple[str, ...]:
    """Names of the layers of `ffn` that have one output (or, packed, several) per hidden unit, in forward order."""
    return tuple(name for name in HIDDEN_LAYERS if isinstance(getattr(ffn, name, None), nn.Module))


def fixed_hidden(ffn: nn.Module) -> str | None:
    """Why hidden units of `ffn` cannot be taken out one by one, or None."""
    if not isinstance(getattr(ffn, "norm", None), nn.Identity | None):
        return "its hidden units are normalised"
    for name in hidden_layers(ffn):
        layer = ffn.get_submodule(name)
        if not (is_pointwise_map(layer) or is_depthwise(layer)):
            return f"its {name} is neither a linear layer nor a depthwise convolution"
    return None


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a layer is a convolution of each channel by itself."""
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels
