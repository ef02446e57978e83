"""Copies of models."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def copy_of(model: Model, memo: dict[int, object] | None = None) -> Model:
    """A deep copy; position biases that timm's layers keep from their last evaluation are forgotten first.

    Such a bias may belong to the graph of a forward pass with gradients, which cannot be copied (timm/models/levit.py).
    """
    for module in model.modules():
        cache = getattr(module, "attention_bias_cache", None)
        if isinstance(cache, dict):
            cache.clear()
    return copy.deepcopy(model, memo)
