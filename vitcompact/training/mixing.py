"""Mixup and CutMix by timm, in steps that can be repeated."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from torch import Tensor

from vitcompact.data.sampling import generator
from vitcompact.training.options import TrainOptions


class Mixing:
    """Mixes each image of a batch with the one at the same place from the end; the middle one of an odd number stays.

    Args:
        options: `mixup`, `cutmix`, `seed`, and whether labels are learned from.
        num_classes: of the model.

    Source: arXiv 1710.09412, arXiv 1905.04899; `timm.data.mixup.Mixup`.
    """

    def __init__(self, options: TrainOptions, num_classes: int) -> None:
        self._mix = Mixup(
            mixup_alpha=options.mixup or 0.0,
            cutmix_alpha=options.cutmix or 0.0,
            label_smoothing=0.0,
            num_classes=num_classes if options.labels else 1,
        )
        self._num_classes, self._labels, self._seed = num_classes, options.labels, options.seed

    @classmethod
    def of(cls, options: TrainOptions, num_classes: int) -> Mixing | None:
        """What `options` ask for, or None."""
        return cls(options, num_classes) if options.mixup or options.cutmix else None

    def __call__(self, step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed images (batch, channels, height, width) and, where labels are learned from, their shares.

        Args:
            labels: int64 (batch,), -1 for none.

        Returns:
            The images, and shares of classes (batch, classes): zeros where one of the two has no label.
        """
        before = np.random.get_state()
        np.random.seed(generator("mix", self._seed, step).getrandbits(32))
        try:
            return self._mixed(images, labels)
        finally:
            np.random.set_state(before)

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        half = len(images) // 2
        pairs = [*range(half), *range(len(images) - half, len(images))]
        known = labels.clamp(min=0) if self._labels else torch.zeros_like(labels)
        soft = F.one_hot(known, self._num_classes).to(torch.float32) if self._labels else labels
        if half:
            mixed, shares = self._mix(images[pairs], known[pairs])
            images = images.clone()
            images[pairs] = mixed
            if self._labels:
                soft[pairs] = shares.to(soft)
        if not self._labels:
            return images, labels
        both = (labels >= 0) & (labels.flip(0) >= 0)
        return images, soft * both[:, None]
