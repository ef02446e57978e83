"""The names of the library, all at once; `vitcompact/__init__.py` asks for them when the first is used."""

from vitcompact.analysis import AnalysisReport, analyze
from vitcompact.attached import Results, results
from vitcompact.benchmarking import BenchResult, bench
from vitcompact.checkpoint import load, load_source, push, save
from vitcompact.compaction import CompactResult, Compared, Within, compact, compare, convert_within
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
from vitcompact.evaluation import EvalResult, evaluate
from vitcompact.exporting import ExportResult, export, open_exported
from vitcompact.folding import FoldParity, MergingEffect, fold
from vitcompact.layers.plain import plain_attention
from vitcompact.planning.curves import Curves
from vitcompact.plans.schema import Plan
from vitcompact.surgery import Fidelity, convert, plan
from vitcompact.training import FinetuneResult, TrainOptions, finetune
from vitcompact.version import __version__

__all__ = [  # noqa: RUF022 - in the order of a job
    "compact",
    "analyze",
    "plan",
    "convert",
    "convert_within",
    "finetune",
    "fold",
    "export",
    "open_exported",
    "evaluate",
    "bench",
    "compare",
    "results",
    "plain_attention",
    "save",
    "load",
    "push",
    "load_source",
    "Plan",
    "Curves",
    "TrainOptions",
    "AnalysisReport",
    "FinetuneResult",
    "ExportResult",
    "EvalResult",
    "BenchResult",
    "CompactResult",
    "Compared",
    "Within",
    "Results",
    "Fidelity",
    "FoldParity",
    "MergingEffect",
    "VitCompactError",
    "UsageError",
    "DataError",
    "NothingToCompactError",
    "CheckpointError",
    "VerificationError",
    "ThresholdError",
    "Interrupted",
    "__version__",
]
