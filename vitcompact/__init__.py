"""vitcompact: pretrained timm Vision Transformers, smaller and faster without retraining from scratch.

    report  = vitcompact.analyze(model, images=images, ratio=0.5)
    compact = vitcompact.convert(model, ratio=0.5, rank_ratio=0.5, images=images)
    folded  = vitcompact.fold(compact)
    vitcompact.save(folded, "out"); again = vitcompact.load("out")

Importing the package registers the timm entrypoint, so that `timm.create_model("local-dir:out", pretrained=True)` loads
what it saved.
"""

from vitcompact.analysis import analyze
from vitcompact.checkpoint import load, load_source, save
from vitcompact.errors import (
    CheckpointError,
    DataError,
    Interrupted,
    NothingToCompactError,
    ThresholdError,
    UsageError,
    VerificationError,
    VitCompactError,
)
from vitcompact.folding import fold
from vitcompact.surgery import convert
from vitcompact.training import finetune
from vitcompact.version import __version__

__all__ = [
    "CheckpointError",
    "DataError",
    "Interrupted",
    "NothingToCompactError",
    "ThresholdError",
    "UsageError",
    "VerificationError",
    "VitCompactError",
    "__version__",
    "analyze",
    "convert",
    "finetune",
    "fold",
    "load",
    "load_source",
    "save",
]
