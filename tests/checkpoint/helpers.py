"""What several tests of the package use."""

from __future__ import annotations

import struct

import torch
from torch import nn


def perturb(model: nn.Module) -> nn.Module:
    """Random values in every parameter, so that no two tensors agree by initialisation."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model.eval()


def header(length: int) -> bytes:
    """The length field with which a safetensors file starts."""
    return struct.pack("<Q", length)
