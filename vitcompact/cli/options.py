"""The verbs and what each takes: options of the library (`vitcompact.options`), and the command line's own few."""

# ruff: noqa: RUF009  (option() returns a dataclasses.field, which every class gets anew)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitcompact.cli.command import Verb
from vitcompact.options.benchmarking import BenchOptions
from vitcompact.options.data import Augment, DataOptions
from vitcompact.options.declare import (
    COMPACTION,
    IMAGES,
    MEASUREMENT,
    MESSAGES,
    MODEL,
    OUTPUT,
    RUN,
    TRAINING,
    declared,
    option,
)
from vitcompact.options.selection import SelectionOptions
from vitcompact.options.shared import MixedPrecision, Seeded
from vitcompact.options.source import SourceOptions
from vitcompact.options.surgery import SurgeryOptions
from vitcompact.options.training import TrainOptions


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every verb takes."""

    json: bool = option(False, "Print one JSON document on stdout.", panel=MESSAGES)
    quiet: bool = option(False, "No notes and no progress, only warnings and errors.", panel=MESSAGES, short="q")
    verbose: bool = option(False, "More messages; full tracebacks of errors.", panel=MESSAGES, short="v")
    config: Path | None = option(
        None,
        "YAML file whose keys are option names; the command line wins. A vitcompact.json, or the --json output of an "
        "earlier run, repeats that run's options.",
        panel=MESSAGES,
        unit="FILE",
    )


@dataclass(frozen=True, kw_only=True)
class Workdir:
    """Where the stages of a job are kept."""

    workdir: Path = option(
        Path("vitcompact-out"),
        "Workspace that chains analyze, convert, finetune and fold.",
        panel=OUTPUT,
        unit="DIR",
    )


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where it runs."""

    device: str = option("cpu", "Device to run on: cpu, cuda, cuda:1 or mps.", panel=RUN, unit="NAME")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Another way to give SOURCE."""

    checkpoint: str | None = option(
        None, "Weights file to read with --model: another way to give SOURCE.", panel=MODEL, unit="FILE"
    )


@dataclass(frozen=True, kw_only=True)
class EvalData:
    """Where the images to evaluate on are."""

    eval_data_dir: str | None = option(
        None, "Evaluation images, where they are not a split of --data-dir.", panel=IMAGES, unit="PATH"
    )


@dataclass(frozen=True, kw_only=True)
class Overwrite:
    """What becomes of an earlier result."""

    overwrite: bool = option(False, "Replace an output that exists.", panel=OUTPUT)


@dataclass(frozen=True, kw_only=True)
class NumberFormat:
    """In what numbers."""

    dtype: Literal["float32", "float16", "bfloat16"] | None = option(
        None,
        "Number format of the weights.",
        panel=RUN,
        unset="as loaded (float32)",
    )


@dataclass(frozen=True, kw_only=True)
class Report:
    """A drawing of the analysis."""

    report: Path | None = option(None, "Draw the analysis into a .html or .png file.", panel=OUTPUT, unit="FILE")


@dataclass(frozen=True, kw_only=True)
class Planning:
    """A plan apart from its conversion."""

    plan: Path | None = option(
        None, "Apply this plan.json instead of choosing what to compact.", panel=COMPACTION, unit="FILE"
    )
    dry_run: bool = option(False, "Print and write the plan, nothing else.", panel=OUTPUT)


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What a distillation starts from."""

    teacher: str | None = option(
        None, "The original to learn from.", panel=MODEL, unit="SOURCE", unset="the recorded original"
    )
    resume: str | None = option(
        None, "Continue an interrupted run; auto finds its state.", panel=TRAINING, unit="PATH|auto"
    )


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a model is scored against."""

    reference: str | None = option(
        None,
        "Compare with this model.",
        panel=MEASUREMENT,
        unit="SOURCE",
        unset="the original, for a MODEL out of the workspace",
    )


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What a model is timed against."""

    baseline: str | None = option(
        None, "Model to compare with.", panel=MEASUREMENT, unit="SOURCE", unset="the recorded original"
    )
    min_speedup: float | None = option(
        None, "Exit with 6 if the speed-up at the largest batch size is below.", panel=MEASUREMENT, unit="FACTOR"
    )


_SOURCE = "A timm name, hf-hub:ORG/NAME, a directory in timm's hub layout, or a weights file with --model."
_LATEST = "By default the workspace's latest."
_ORIGINAL = (SourceOptions, Checkpoint)
_IMAGES = (DataOptions, EvalData)
_OUT = (Overwrite, NumberFormat)
_JOB = (Seeded, Workdir, Common)


def _out(stage: str) -> tuple[str, str]:
    return "OUT", f"Directory to write; by default '{stage}' in the workspace."


VERBS = (
    Verb(
        "analyze",
        "analyze",
        "Look at a model: how alike its attention heads are, what its FFNs need, and what compaction would save.\n\n"
        "Example: vitcompact analyze vit_small_patch16_224 --data-dir images --report analysis.html",
        (*_ORIGINAL, *_IMAGES, SelectionOptions, Device, Report, *_JOB),
        arguments={"source": ("SOURCE", _SOURCE)},
        defaults={"num_samples": 512},
    ),
    Verb(
        "convert",
        "convert",
        "Make a model smaller: hallucinate attention heads and factorize FFNs, solved on calibration images.\n\n"
        "Without images the weights alone decide, which costs far more accuracy.\n\n"
        "Example, after analyze: vitcompact convert --ratio 0.5\n\n"
        "Example, by itself: vitcompact convert vit_small_patch16_224 OUT --data-dir images",
        (*_ORIGINAL, *_IMAGES, SelectionOptions, Planning, SurgeryOptions, Device, *_OUT, *_JOB),
        arguments={"source": ("SOURCE", f"{_SOURCE} By default what was analyzed."), "out": _out("converted")},
        defaults={"num_samples": 512, "dtype": "float32"},
    ),
    Verb(
        "finetune",
        "finetune",
        "Distil a converted model from its original for a few minutes. Labels are not needed.\n\n"
        "Stops after --epochs, --steps or --max-minutes, whichever comes first (10 minutes where none is given). "
        "Ctrl-C keeps a state from which --resume auto continues.\n\n"
        "Example: vitcompact finetune --max-minutes 10 --eval-data-dir val",
        (*_IMAGES, TrainOptions, Augment, Distillation, Device, *_OUT, *_JOB),
        arguments={
            "source": ("MODEL", "A converted model; by default 'converted' in the workspace."),
            "out": _out("finetuned"),
        },
        defaults={"dtype": "float32"},
    ),
    Verb(
        "fold",
        "fold",
        "Merge training branches into plain layers, prove that nothing changed, and save. Needs no images.\n\n"
        "The proof compares outputs in float32, on the model's own and on perturbed weights, before any cast to "
        "--dtype.\n\n"
        "--merge-tokens goes further and changes outputs, after the proof: how much is measured on --data-dir, or on "
        "the images that the workspace recorded. A MODEL that was never converted is taken too.\n\n"
        "Example: vitcompact fold --merge-tokens 8",
        (*_IMAGES, SelectionOptions, *_OUT, *_JOB),
        arguments={
            "source": ("MODEL", "A converted or finetuned model; by default the workspace's latest."),
            "out": _out("folded"),
        },
        drops=("num_samples", *(name for name in declared(SelectionOptions) if name != "merge_tokens")),
        defaults={"dtype": "float32"},
    ),
    Verb(
        "eval",
        "evaluate",
        "Measure top-1 and top-5, and how closely a model follows its original.\n\n"
        "A model without a head is compared with --reference by its features.\n\n"
        "Example: vitcompact eval vitcompact-out/folded --data-dir val",
        (*_ORIGINAL, *_IMAGES, Reference, Device, MixedPrecision, *_JOB),
        arguments={"source": ("MODEL", f"{_SOURCE} {_LATEST}")},
        defaults={"amp": False},
    ),
    Verb(
        "bench",
        "bench",
        "Time a model against its original, alternately in one process, on random images.\n\n"
        "Example: vitcompact bench vitcompact-out/folded -b 1 8 32 --min-speedup 1.1",
        (*_ORIGINAL, Baseline, BenchOptions, NumberFormat, Device, MixedPrecision, *_JOB),
        arguments={"source": ("MODEL", f"{_SOURCE} {_LATEST}")},
        defaults={"amp": False},
    ),
    Verb(
        "families",
        "families",
        "List every attention class of the installed timm: supported, or skipped and why.",
        (Common,),
    ),
    Verb(
        "demo",
        "demo",
        "Do the whole job on a small bundled model and real images: offline, in under a minute.",
        (Overwrite, Workdir, Common),
    ),
)
