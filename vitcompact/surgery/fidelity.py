"""How alike the converted and the original model answer on images that no fit saw."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from vitcompact.calibration.held_out import Parts
from vitcompact.data import ImageBatches, placed, processes_of
from vitcompact.evaluation.changed import Observer
from vitcompact.models.forward import main_output, num_classes
from vitcompact.models.scores import Likeness
from vitcompact.utils.device import device_of
from vitcompact.utils.intervals import Interval, wilson
from vitcompact.utils.text import fields, pairs_html


@dataclass(frozen=True)
class Fidelity:
    """Likeness of converted and original model on held-out calibration images (`num_samples` of them).

    `agreement` is the share of equal arg max (None without a head), `cosine` the mean cosine of the outputs.
    """

    agreement: float | None
    cosine: float
    num_samples: int

    @property
    def agreement_interval(self) -> Interval | None:
        """95 % interval of `agreement`: of few images it is wide."""
        return None if self.agreement is None else wilson(round(self.agreement * self.num_samples), self.num_samples)

    def to_json(self) -> dict[str, Any]:
        """The fields, and `agreement_interval`."""
        return {**asdict(self), "agreement_interval": self.agreement_interval}

    def __repr__(self) -> str:
        return fields("Fidelity", **asdict(self))

    def _repr_html_(self) -> str:
        return pairs_html("Fidelity", asdict(self))


@torch.no_grad()
def fidelity(
    original: nn.Module, converted: nn.Module, images: ImageBatches, observer: Observer | None = None
) -> Fidelity:
    """Compare the outputs of two models on the held-out images (all images where none are held out)."""
    likeness, total, device = Likeness(), 0, device_of(original)
    for start, batch in placed(images):
        parts = Parts.of(start, start + len(batch), images.num_samples)
        for held, part in parts.slices(len(batch)):
            if held or images.num_samples == 1:
                chosen = batch[part].to(device)
                target, output = main_output(original(chosen)), main_output(converted(chosen))
                likeness.add(target, output)
                if observer is not None and output.ndim == 2:
                    observer(chosen, output, target, None)
                total += len(chosen)
    likeness.total_over(processes_of(images))
    total = round(processes_of(images).sums(total)[0])
    return Fidelity(likeness.agreement if num_classes(original) else None, likeness.cosine, total)
