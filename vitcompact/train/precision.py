"""Whether to train in mixed precision."""

from __future__ import annotations

import torch

from vitcompact.precision import computes_bfloat16
from vitcompact.train.options import TrainOptions


def amp_dtype(options: TrainOptions, device: torch.device) -> torch.dtype | None:
    """The type of automatic mixed precision, or None; master weights stay float32 either way."""
    wanted = computes_bfloat16(device) if options.amp is None else options.amp
    return torch.bfloat16 if wanted else None
