"""What number formats a device is good at."""

from __future__ import annotations

import torch


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
