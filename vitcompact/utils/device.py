"""Devices: where a model is, copies elsewhere, what number formats a device is good at, and waiting for it."""

from __future__ import annotations

import torch
from torch import nn

from vitcompact.utils.copies import copy_of


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter is; the CPU for a model without any."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def best_device() -> str:
    """The fastest kind of device that is there: CUDA before Apple's GPU before the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def frozen_copy(model: nn.Module, device: str | torch.device) -> nn.Module:
    """The model in evaluation mode and float32 on `device`, not to be written to: what is so already shares memory."""
    shared: dict[int, object] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    shared |= {id(buffer): buffer for buffer in model.buffers()}
    return copy_of(model, shared).eval().to(device=device, dtype=torch.float32).requires_grad_(False)


def synchronise(device: torch.device) -> None:
    """Wait until `device` has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def computes_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 matrices in hardware; emulation would be slower than float32.

    torch exposes what it knows of x86 CPUs under private names only; other CPUs count as not capable.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in probes)
