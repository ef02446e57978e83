"""Linear maps over the channels of a feature map: 1x1 convolutions and their weights as matrices."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcompact.errors import UsageError


class PointwiseLinear(nn.Linear):
    """A linear layer over axis 1 of `(batch, channels, height, width)`: a 1x1 convolution stored as a matrix."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)


def linear_class(channel_dim: int) -> type[nn.Linear]:
    """The layer that maps channels on the last axis (-1) or on axis 1 of a feature map (1)."""
    return nn.Linear if channel_dim == -1 else PointwiseLinear


def is_pointwise_map(layer: nn.Module) -> bool:
    """Whether a layer is one matrix over the channels: a linear layer, or a 1x1 convolution in one group."""
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1 and layer.padding == (0, 0)
    return isinstance(layer, nn.Linear)


def channel_dim(layer: nn.Module) -> int:
    """Axis of the channels of such a layer's input and output: -1, or 1 on feature maps."""
    return 1 if isinstance(layer, nn.Conv2d | PointwiseLinear) else -1


def matrix(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight `(out, in)` and bias `(out,)` of such a layer; views, no copies.

    Raises:
        UsageError: the layer is no such map.
    """
    if not is_pointwise_map(layer):
        raise UsageError(f"expected a linear layer or a 1x1 convolution, got {type(layer).__name__}")
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    return layer.weight.flatten(1), layer.bias


@torch.no_grad()
def linear_like(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Linear | nn.Conv2d:
    """A layer of the same kind (linear or 1x1 convolution) with another matrix `(out, in)` and bias."""
    outputs, inputs = weight.shape
    like: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    made: nn.Linear | nn.Conv2d
    if isinstance(layer, nn.Conv2d):
        made = nn.Conv2d(inputs, outputs, 1, bias=bias is not None, **like)
    else:
        made = linear_class(channel_dim(layer))(inputs, outputs, bias=bias is not None, **like)
    made.weight.copy_(weight.reshape(made.weight.shape))
    if made.bias is not None and bias is not None:
        made.bias.copy_(bias)
    made.requires_grad_(any(parameter.requires_grad for parameter in layer.parameters()))
    return made.train(layer.training)
