"""Short distillation of a converted model from its original."""

from vitcompact.train.errors import DivergedError
from vitcompact.train.finetune import branch_ratios, finetune
from vitcompact.train.options import TrainOptions
from vitcompact.train.result import FinetuneResult
from vitcompact.train.stream import TensorBatches, TrainingStream

__all__ = [
    "DivergedError",
    "FinetuneResult",
    "TensorBatches",
    "TrainOptions",
    "TrainingStream",
    "branch_ratios",
    "finetune",
]
