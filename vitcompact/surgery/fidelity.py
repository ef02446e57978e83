"""How alike the converted and the original model answer on images that no fit saw."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from vitcompact.calibration.streams import held_out
from vitcompact.data import ImageBatches


@dataclass(frozen=True)
class Fidelity:
    """Likeness of converted and original model on held-out calibration images (`num_samples` of them).

    `agreement` is the share of equal arg max (None without a head), `cosine` the mean cosine of the outputs.
    """

    agreement: float | None
    cosine: float
    num_samples: int


@torch.no_grad()
def fidelity(original: nn.Module, converted: nn.Module, images: ImageBatches) -> Fidelity:
    """Compare the outputs of two models on the held-out images of every batch (all images where none are held out)."""
    equal = cosine = total = 0.0
    device = next(original.parameters()).device
    for batch in images:
        chosen = batch[len(batch) - (held_out(len(batch)) or len(batch)) :].to(device)
        first, second = original(chosen), converted(chosen)
        first, second = first.flatten(1).double(), second.flatten(1).double()
        equal += float((first.argmax(1) == second.argmax(1)).sum())
        cosine += float(F.cosine_similarity(first, second).sum())
        total += len(chosen)
    has_head = int(getattr(original, "num_classes", 0) or 0) > 0
    return Fidelity(equal / total if has_head else None, cosine / total, int(total))
