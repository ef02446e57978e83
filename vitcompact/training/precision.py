"""Whether to train in mixed precision."""

from __future__ import annotations

import torch

from vitcompact.training.options import TrainOptions
from vitcompact.utils.precision import computes_bfloat16


def amp_dtype(options: TrainOptions, device: torch.device) -> torch.dtype | None:
    """The type of automatic mixed precision, or None; master weights stay float32 either way."""
    wanted = computes_bfloat16(device) if options.amp is None else options.amp
    return torch.bfloat16 if wanted else None
