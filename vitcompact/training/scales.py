"""Natural sizes of parameters: one learning rate means the same relative step for all of them.

Adam's steps do not depend on the size of the gradient, so they have to be told the size of the weights. Surgery changes
that size by orders of magnitude: LayerScale is absorbed into the solved matrices, which can make them a tenth or ten
times as large as those of the original, and a rate that is right for the one destroys the other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vitcompact.layers.branches import BranchedLinear
from vitcompact.layers.pointwise import channel_dim
from vitcompact.models.forward import eval_mode

USUAL_RMS = 0.02
"""Root mean square of a ViT's weight matrices, for which `lr` is meant literally (timm initialises them so)."""


def weight_scale(parameter: Tensor) -> float:
    """Root mean square over `USUAL_RMS`, to the nearest power of two (so that few groups result); 1 for zeros."""
    rms = float(parameter.detach().double().square().mean().sqrt())
    if not rms > 0 or not math.isfinite(rms):
        return 1.0
    return float(2.0 ** round(math.log2(rms / USUAL_RMS)))


def output_scales(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Root mean square over channels of the standard deviation that each `BranchedLinear`'s solved part gives.

    Args:
        model: on the device of `images`.
        images: one batch (batch, channels, height, width).
    """
    found: dict[str, float] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, BranchedLinear) and len(module.branches):

            def keep(main: nn.Module, args: object, output: Tensor, name: str = name) -> None:
                rows = output.float().movedim(channel_dim(main), -1)
                flat = rows.reshape(-1, rows.shape[-1])
                found[name] = float(flat.var(dim=0, correction=0).mean().sqrt())

            handles.append(module.main.register_forward_hook(keep))
    try:
        if handles:
            with eval_mode(model), torch.no_grad():
                model(images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: scale if scale > 0 and math.isfinite(scale) else 1.0 for name, scale in found.items()}
