"""How many of the images differ from each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vitcompact.data.batches import ImageBatches, first_images

SIDE = 16
ALIKE = 0.05
"""Two images are alike where their values, averaged over a grid of `SIDE x SIDE`, differ by less than this root mean
square, in standard deviations of the normalisation: copies, also compressed anew."""
LOOKED_AT = 256


def num_distinct(images: ImageBatches) -> tuple[int, int]:
    """Images among the first ones that are like none before them, and how many were looked at."""
    chosen = first_images(images, LOOKED_AT)
    small = torch.cat([F.adaptive_avg_pool2d(batch, SIDE).flatten(1) for batch in chosen])
    distance = torch.cdist(small, small) / small.shape[1] ** 0.5
    earlier = torch.ones_like(distance).tril(-1).bool()
    return int((~((distance < ALIKE) & earlier).any(1)).sum()), len(small)
