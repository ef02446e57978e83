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


def _parts(layer: nn.Module) -> tuple[nn.Module, nn.BatchNorm1d | nn.BatchNorm2d | None]:
    """A layer and the batch norm behind it, where it is a pair of the two; else itself and None."""
    children = list(layer.children())
    if len(children) == 2 and type(children[1]) in (nn.BatchNorm1d, nn.BatchNorm2d):
        return children[0], children[1]  # type: ignore[return-value]
    return layer, None


def is_pointwise_map(layer: nn.Module) -> bool:
    """Whether a layer is one matrix over the channels: a linear layer, or a 1x1 convolution in one group.

    A batch norm behind it, as its only companion in one module, is part of the matrix (in evaluation mode).
    """
    layer, _ = _parts(layer)
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1 and layer.padding == (0, 0)
    return isinstance(layer, nn.Linear)


def channel_dim(layer: nn.Module) -> int:
    """Axis of the channels of such a layer's input and output: -1, or 1 on feature maps."""
    return 1 if isinstance(_parts(layer)[0], nn.Conv2d | PointwiseLinear) else -1


def matrix(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight `(out, in)` and bias `(out,)` of such a layer; views, no copies (but where a batch norm is folded in).

    Raises:
        UsageError: the layer is no such map.
    """
    if not is_pointwise_map(layer):
        raise UsageError(f"expected a linear layer or a 1x1 convolution, got {type(layer).__name__}")
    inner, norm = _parts(layer)
    assert isinstance(inner, nn.Linear | nn.Conv2d)
    rows = inner.weight.flatten(1), inner.bias
    return rows if norm is None else normed(*rows, norm)


@torch.no_grad()
def normed(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A linear map with the evaluation-mode batch norm behind it, `(W x + b - mean) scale + shift`, as one."""
    assert norm.running_mean is not None  # always tracked
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    shift = shift if bias is None else shift + bias.double() * scale
    return (weight.double() * scale[:, None]).to(weight.dtype), shift.to(weight.dtype)


@torch.no_grad()
def linear_like(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Linear | nn.Conv2d:
    """A layer of the same kind (linear or 1x1 convolution) with another matrix `(out, in)` and bias."""
    outputs, inputs = weight.shape
    like: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    made: nn.Linear | nn.Conv2d
    if isinstance(_parts(layer)[0], nn.Conv2d):
        made = nn.Conv2d(inputs, outputs, 1, bias=bias is not None, **like)
    else:
        made = linear_class(channel_dim(layer))(inputs, outputs, bias=bias is not None, **like)
    made.weight.copy_(weight.reshape(made.weight.shape))
    if made.bias is not None and bias is not None:
        made.bias.copy_(bias)
    made.requires_grad_(any(parameter.requires_grad for parameter in layer.parameters()))
    return made.train(layer.training)
