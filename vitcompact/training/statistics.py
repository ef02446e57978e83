"""Statistics of the branches' BatchNorm, measured again for the final weights."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor, nn

from vitcompact.layers.branches import TokenBatchNorm
from vitcompact.models.forward import autocast, eval_mode


def remeasure(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_batches: int,
    device: torch.device,
    amp_dtype: torch.dtype | None,
) -> None:
    """Replace running mean and variance of every `TokenBatchNorm` by plain averages over `num_batches` batches.

    While training they lag behind the weights, and a moving average of the weights has statistics of its own; only
    the evaluation form is folded, so it has to be the function that was trained.
    """
    norms = [module for module in model.modules() if isinstance(module, TokenBatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with eval_mode(model), torch.no_grad():
        for norm in norms:
            norm.train()
        for i, (images, _) in enumerate(islice(batches, num_batches)):
            for norm in norms:
                norm.momentum = 1 / (i + 1)
            with autocast(device, amp_dtype):
                model(images.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
