"""Whether to train in mixed precision."""

from __future__ import annotations

import torch

from vitcompact.train.options import TrainOptions


def amp_dtype(options: TrainOptions, device: torch.device) -> torch.dtype | None:
    """The type of automatic mixed precision, or None; master weights stay float32 either way."""
    wanted = computes_bfloat16(device) if options.amp is None else options.amp
    return torch.bfloat16 if wanted else None


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
