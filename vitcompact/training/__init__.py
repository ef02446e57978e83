"""Short distillation of a converted model from its original."""

from vitcompact.training.finetune import branch_ratios, finetune
from vitcompact.training.options import TrainOptions
from vitcompact.training.result import DivergedError, FinetuneResult
from vitcompact.training.stream import TensorBatches, TrainingStream

__all__ = [
    "DivergedError",
    "FinetuneResult",
    "TensorBatches",
    "TrainOptions",
    "TrainingStream",
    "branch_ratios",
    "finetune",
]
