"""The options of each verb; its docstring is the verb's text in `--help`."""

# ruff: noqa: RUF009  (option() returns a dataclasses.field, which every class gets anew)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitcompact.cli import fields
from vitcompact.cli.fields import argument, option
from vitcompact.cli.options import (
    Amp,
    Calibration,
    Common,
    DataOptions,
    Device,
    DType,
    NumSamples,
    OutOptions,
    Seed,
    SelectionOptions,
    SourceOptions,
    Workdir,
)
from vitcompact.planning.request import INGREDIENTS

_SOURCE = "A timm name, hf-hub:ORG/NAME, a directory in timm's hub layout, or a weights file with --model."


@dataclass(frozen=True, kw_only=True)
class AnalyzeOptions(Common, Workdir, Seed, Device, SelectionOptions, Calibration, DataOptions, SourceOptions):
    """Look at a model: how alike its attention heads are, what its FFNs need, and what compaction would save.

    Example: vitcompact analyze vit_small_patch16_224 --data-dir images --report analysis.html
    """

    source: str | None = argument("SOURCE", _SOURCE)
    report: Path | None = option(
        None, panel=fields.OUTPUT, metavar="FILE", help="Draw the analysis into a .html or .png file."
    )


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(
    Common, Workdir, OutOptions, Seed, Device, SelectionOptions, Calibration, DataOptions, SourceOptions
):
    """Make a model smaller: hallucinate attention heads and factorize FFNs, solved on calibration images.

    Without images the weights alone decide, which costs far more accuracy.

    Example, after analyze: vitcompact convert --ratio 0.5

    Example, by itself: vitcompact convert vit_small_patch16_224 OUT --data-dir images
    """

    source: str | None = argument("SOURCE", f"{_SOURCE} By default what was analyzed.")
    out: str | None = argument("OUT", "Directory to write; by default 'converted' in the workspace.")
    dry_run: bool = option(False, "--dry-run", panel=fields.OUTPUT, help="Print and write the plan, nothing else.")
    plan: Path | None = option(
        None, panel=fields.COMPACTION, metavar="FILE", help="Apply this plan.json instead of choosing heads and ranks."
    )
    reconstruct: int = option(
        0,
        panel=fields.SURGERY,
        min=0,
        metavar="STEPS",
        help="Adam steps on each block after it is solved, on the same images; a few hundred are usual.",
    )
    without: str = option(
        "",
        panel=fields.SURGERY,
        metavar="NAMES",
        show_default=False,
        help=f"Leave ingredients out, to see what they are worth: {', '.join(INGREDIENTS)}.",
    )
    init: Literal["lstsq", "svd"] = option(
        "lstsq", panel=fields.SURGERY, help="FFN factors: lstsq fits them to the images, svd is the naive way."
    )
    hallucinate: Literal["refit", "copy"] = option(
        "refit", panel=fields.SURGERY, help="Hallucinated heads: refit solves their values anew, copy is the naive way."
    )
    terms: str = option(
        "identity",
        panel=fields.SURGERY,
        metavar="NAMES",
        help="What a hallucinated map has besides its parent's: identity, mean, conv, several with commas, or none.",
    )
    filter_rank: int = option(
        0,
        panel=fields.SURGERY,
        min=0,
        max=3,
        metavar="N",
        help="Rank of a 3x3 filter over hallucinated maps; 0 is none.",
    )
    branches: int = option(
        0,
        panel=fields.SURGERY,
        min=0,
        metavar="N",
        help="Trainable branches beside each FFN factor, gone after fold; they gain nothing in short fine-tuning.",
    )
    cache_gb: float = option(
        4.0, panel=fields.SURGERY, min=0, metavar="GB", help="Memory for one block's inputs; beyond it they go to disk."
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(Common, Workdir, OutOptions, Seed, Device, NumSamples, DataOptions):
    """Distil a converted model from its original for a few minutes. Labels are not needed.

    Stops after --epochs, --steps or --max-minutes, whichever comes first (10 minutes where none is given). Ctrl-C
    keeps a state from which --resume auto continues.

    Example: vitcompact finetune --max-minutes 10 --eval-data-dir val
    """

    source: str | None = argument("MODEL", "A converted model; by default 'converted' in the workspace.")
    out: str | None = argument("OUT", "Directory to write; by default 'finetuned' in the workspace.")
    teacher: str | None = option(
        None, panel=fields.MODEL, metavar="SOURCE", help="The original to learn from; by default the recorded one."
    )
    epochs: float | None = option(None, panel=fields.TRAINING, metavar="N", help="Passes over the images.")
    steps: int | None = option(None, panel=fields.TRAINING, metavar="N", help="Optimizer steps.")
    max_minutes: float | None = option(
        None, panel=fields.TRAINING, metavar="MINUTES", help="Wall-clock limit, evaluation included."
    )
    opt: str | None = option(
        None,
        panel=fields.TRAINING,
        metavar="NAME",
        help="timm optimizer; by default adamw, or muon for a model without a head.",
    )
    lr: float | None = option(
        None,
        panel=fields.TRAINING,
        metavar="RATE",
        help="Learning rate at its height, relative to the weights' size; by default about 1e-4, or 3e-5 without a "
        "head, times 0.1 to 1.5 by how much was taken away.",
    )
    scale: tuple[float, ...] | None = option(
        None,
        panel=fields.TRAINING,
        numbers=float,
        metavar="MIN,MAX",
        help="Share of an image's area in a random crop; by default 0.8,1, or 0.35,1 for a model without a head.",
    )
    branch_lr: float | None = option(
        None,
        panel=fields.TRAINING,
        metavar="RATE",
        help="That of branches and alpha, which start silent; by default about 1e-3, as --lr.",
    )
    temperature: float = option(2.0, panel=fields.TRAINING, metavar="T", help="Softmax temperature of the logit loss.")
    block_weight: float = option(
        10.0, panel=fields.TRAINING, metavar="WEIGHT", help="Weight of the loss on block outputs."
    )
    logit_weight: float | None = option(
        None,
        panel=fields.TRAINING,
        metavar="WEIGHT",
        help="Weight of the loss on logits, for images new to the original; by default 0, or 1 without block outputs.",
    )
    feature_weight: float = option(
        1.0, panel=fields.TRAINING, metavar="WEIGHT", help="Weight of the loss on features, for a model without a head."
    )
    weight_decay: float = option(0.01, panel=fields.TRAINING, metavar="RATE", help="Decay of weight matrices.")
    sched: str = option(
        "cosine", panel=fields.TRAINING, metavar="NAME", help="Schedule: cosine, poly, tanh, wsd or constant."
    )
    warmup_steps: int = option(20, panel=fields.TRAINING, metavar="N", help="Steps of linear warm-up.")
    clip_grad: float = option(1.0, panel=fields.TRAINING, metavar="NORM", help="Largest norm of the gradient.")
    labels: bool = option(False, "--labels", panel=fields.TRAINING, help="Learn from the images' labels too.")
    model_ema: bool = option(
        True,
        "--model-ema/--no-model-ema",
        panel=fields.TRAINING,
        help="Average the weights over the steps, and keep the average.",
    )
    model_ema_decay: float = option(0.99, panel=fields.TRAINING, metavar="RATE", help="Decay of that average.")
    grad_checkpointing: bool = option(
        False, "--grad-checkpointing", panel=fields.TRAINING, help="Less memory for about a third more time."
    )
    resume: str | None = option(
        None, panel=fields.TRAINING, metavar="PATH|auto", help="Continue an interrupted run; auto finds its state."
    )
    amp: bool | None = option(
        None,
        "--amp/--no-amp",
        panel=fields.RUN,
        show_default=False,
        help="Automatic mixed precision; by default where the device has it natively.",
    )
    amp_dtype: Literal["bfloat16"] = option("bfloat16", panel=fields.RUN, help="Number format of --amp.")


@dataclass(frozen=True, kw_only=True)
class FoldOptions(Common, Workdir, OutOptions, Seed, DataOptions):
    """Merge training branches into plain layers, prove that nothing changed, and save. Needs no images.

    The proof compares outputs in float32, on the model's own and on perturbed weights, before any cast to --dtype.

    --merge-tokens goes further and changes outputs, after the proof: how much is measured on --data-dir, or on the
    images that the workspace recorded. A MODEL that was never converted is taken too.

    Example: vitcompact fold --merge-tokens 8
    """

    source: str | None = argument("MODEL", "A converted or finetuned model; by default the workspace's latest.")
    out: str | None = argument("OUT", "Directory to write; by default 'folded' in the workspace.")
    merge_tokens: tuple[int, ...] | None = option(
        None,
        "--merge-tokens",
        panel=fields.COMPACTION,
        numbers=int,
        metavar="N",
        help="Pairs of similar tokens that each block of a plain ViT merges, or one number for each block; 0 for none.",
    )


@dataclass(frozen=True, kw_only=True)
class EvalOptions(Common, Workdir, Seed, Amp, Device, NumSamples, DataOptions, SourceOptions):
    """Measure top-1 and top-5, and how closely a model follows its original.

    A model without a head is compared with --reference by its features.

    Example: vitcompact eval vitcompact-out/folded --data-dir val
    """

    source: str | None = argument("MODEL", f"{_SOURCE} By default the workspace's latest.")
    reference: str | None = option(
        None,
        panel=fields.MEASUREMENT,
        metavar="SOURCE",
        help="Compare with this model; by default the original, for a MODEL out of the workspace.",
    )


@dataclass(frozen=True, kw_only=True)
class BenchOptions(Common, Workdir, Seed, Amp, Device, SourceOptions):
    """Time a model against its original, alternately in one process, on random images.

    Example: vitcompact bench vitcompact-out/folded -b 1 8 32 --min-speedup 1.1
    """

    source: str | None = argument("MODEL", f"{_SOURCE} By default the workspace's latest.")
    baseline: str | None = option(
        None, panel=fields.MEASUREMENT, metavar="SOURCE", help="What to compare with; by default the recorded original."
    )
    batch_size: tuple[int, ...] = option(
        (1, 8, 32),
        "--batch-size",
        "-b",
        panel=fields.MEASUREMENT,
        numbers=int,
        metavar="N,N,…",
        help="Images a batch; by default 1, 8 and 32.",
    )
    num_pairs: int = option(
        30, panel=fields.MEASUREMENT, min=1, metavar="N", help="Timed runs of each model, for each batch size."
    )
    warmup: int = option(5, panel=fields.MEASUREMENT, min=0, metavar="N", help="Untimed runs before them.")
    max_seconds: float = option(
        60.0, panel=fields.MEASUREMENT, min=0, metavar="SECONDS", help="Limit for the timed runs of a batch size."
    )
    min_speedup: float | None = option(
        None,
        panel=fields.MEASUREMENT,
        metavar="FACTOR",
        help="Exit with 6 where the speed-up at the largest batch size is below.",
    )
    dtype: DType | None = option(
        None, panel=fields.RUN, help="Cast both models to this number format; by default they run as loaded (float32)."
    )
    channels_last: bool = option(False, "--channels-last", panel=fields.RUN, help="Channels-last memory format.")
    torchcompile: bool = option(False, "--torchcompile", panel=fields.RUN, help="Run both through torch.compile.")


@dataclass(frozen=True, kw_only=True)
class FamiliesOptions(Common):
    """List every attention class of the installed timm: supported, or skipped and why."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions(Common, Workdir):
    """Do the whole job on a small bundled model and real images: offline, in under a minute."""

    overwrite: bool = option(
        False, "--overwrite", panel=fields.OUTPUT, help="Replace an earlier demo in the workspace."
    )
