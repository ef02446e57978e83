"""What every calibration statistic asks of its activations."""

from __future__ import annotations

import torch
from torch import Tensor

from vitcompact.errors import DataError


def check_finite(name: str, *values: Tensor) -> None:
    """Refuse activations of the layer `name`, or sums of them, that are not finite.

    Raises:
        DataError: see above; the message names the layer.
    """
    if not all(bool(torch.isfinite(each).all()) for each in values):
        raise DataError(f"{name}: activations are not finite (NaN or infinity) on the calibration images")
