"""What the hidden units of an FFN are made of: which layers produce them."""

from __future__ import annotations

from torch import nn

HIDDEN_LAYERS = ("fc1", "fc1_g", "fc1_x")
"""Layers whose outputs are the hidden units, by timm's names (timm/layers/mlp.py); a packed GLU stacks two halves."""


def hidden_layers(ffn: nn.Module) -> tuple[str, ...]:
    """Names of the layers of `ffn` that have one output (or, packed, several) per hidden unit."""
    return tuple(name for name in HIDDEN_LAYERS if isinstance(getattr(ffn, name, None), nn.Module))


def fixed_hidden(ffn: nn.Module) -> str | None:
    """Why hidden units of `ffn` cannot be taken out one by one, or None."""
    if not isinstance(getattr(ffn, "norm", None), nn.Identity | None):
        return "its hidden units are normalised together"
    if not all(isinstance(getattr(ffn, name), nn.Linear) for name in hidden_layers(ffn)):
        return "its hidden units do not come from linear layers"
    return None
