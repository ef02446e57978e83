"""vitcompact: pretrained timm Vision Transformers, smaller and faster without retraining from scratch.

Every function takes timm modules and normalised images, changes neither, and returns something new:

    compact(model, images, speedup=)      the whole job: plan, convert, train where needed, fold, time
    analyze(model, images)                what every layer could do without, and what that would save
    plan(model, images=, target_macs=)    what convert would do to which layer; prints as a table
    convert(model, images=, plan=)        the compacted model in training form; or with target_macs=, ratio=, ...
    finetune(compact, teacher, images)    short distillation from the original, without labels
    fold(compact)                         plain layers, proven equal
    export(folded, "model.onnx")          a file for another runtime, compared there with PyTorch
    open_exported("model.onnx")           such a file as a model
    evaluate(model, images, labels)       top-1 and top-5; with reference= likeness to the original
    bench(model, baseline)                latency, throughput and memory, interleaved
    compare({name: model, ...})           several models beside each other
    results(model)                        the plan and the measurements that a compacted model carries
    save(model, path), load(path)         a directory in timm's hub layout, safetensors
    load_source(source)                   a model of a timm name, a hub name, a directory or a weights file

A whole job:

    model   = timm.create_model("deit_small_patch16_224", pretrained=True)
    compact = vitcompact.convert(model, images=images, target_macs=0.8)
    tuned   = vitcompact.finetune(compact, model, images).model
    folded  = vitcompact.fold(tuned)
    vitcompact.save(folded, "out")
    again   = vitcompact.load("out")

`images` are a tensor (n, channels, height, width) as the model's own transform gives them, or an iterable of such
batches; `vitcompact.data` reads them from files. Importing the package registers the timm entrypoint, so that
`timm.create_model("local-dir:out", pretrained=True)` loads what was saved. What a user can put right is raised as a
`VitCompactError`, and its message says how.
"""

# ruff: noqa: E402 - loading torch takes seconds, in which Ctrl-C is to be quiet

from vitcompact.utils import early_exit

early_exit.watch_loading()

from vitcompact.analysis import AnalysisReport, analyze
from vitcompact.attached import Results, results
from vitcompact.benchmarking import BenchResult, bench
from vitcompact.checkpoint import load, load_source, save
from vitcompact.compaction import CompactResult, Compared, compact, compare
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
from vitcompact.plan.schema import Plan
from vitcompact.surgery import Fidelity, convert, plan
from vitcompact.training import FinetuneResult, TrainOptions, finetune
from vitcompact.version import __version__

__all__ = [  # noqa: RUF022 - in the order of a job
    "compact",
    "analyze",
    "plan",
    "convert",
    "finetune",
    "fold",
    "export",
    "open_exported",
    "evaluate",
    "bench",
    "compare",
    "results",
    "save",
    "load",
    "load_source",
    "Plan",
    "TrainOptions",
    "AnalysisReport",
    "FinetuneResult",
    "ExportResult",
    "EvalResult",
    "BenchResult",
    "CompactResult",
    "Compared",
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
