"""How large a learning rate a conversion wants: the nearer it is to its original, the smaller the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing

from torch import Tensor, nn

from vitcompact.training.distill import Distiller
from vitcompact.training.nearer import evaluated_loss
from vitcompact.training.options import TrainOptions

USUAL_ERROR = 0.05
"""Mean `relative_error` of the blocks for which default learning rates are meant literally (docs/results.md)."""

FACTORS = (0.1, 1.5)
"""By how much the error may change them."""

_BLOCKS_ALONE = TrainOptions(logit_weight=0.0, feature_weight=0.0, block_weight=1.0)


def rate_factor(error: float) -> float:
    """What a default learning rate is multiplied by where the blocks' mean `relative_error` is `error` before training.

    That error is a square: outputs that are off by a share `sqrt(error)` want weights changed by about such a share.
    """
    smallest, largest = FACTORS
    if not math.isfinite(error):
        return 1.0
    return min(max(math.sqrt(error / USUAL_ERROR), smallest), largest)


def block_error(
    student: nn.Module, teacher: nn.Module, blocks: Sequence[str], batches: Sequence[tuple[Tensor, Tensor]]
) -> float:
    """Mean `relative_error` of block outputs, from the first block on that differs.

    Args:
        student: on the device of `teacher`.
        teacher: the original, in evaluation mode.
        blocks: module paths of at least one block.
        batches: images and labels, of which the latter are not looked at.
    """
    with closing(Distiller(student, teacher, blocks, _BLOCKS_ALONE, None)) as distiller:
        return evaluated_loss(distiller.loss, student, batches)
