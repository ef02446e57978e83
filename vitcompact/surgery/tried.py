"""A model runs once on its images before the long work."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitcompact.calibration.sensitivity import answer
from vitcompact.errors import DataError, VitCompactError
from vitcompact.utils.device import device_of


@torch.no_grad()
def try_model(model: nn.Module, images: Tensor) -> None:
    """Run `model` on a few images the way its output is measured later.

    Raises:
        UsageError: outputs that nothing can be measured in.
        DataError: it does not run on them.
    """
    try:
        answer(model, images.to(device_of(model)))
    except VitCompactError:
        raise
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise DataError(f"this model does not run on the images: {type(error).__name__} {reason}".rstrip()) from error
