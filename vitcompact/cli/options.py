"""Groups of options that several verbs share. Names follow timm's scripts where timm has one."""

# ruff: noqa: RUF009  (option() returns a dataclasses.field, which every class gets anew)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitcompact.cli import fields
from vitcompact.cli.config import use_config
from vitcompact.cli.fields import option
from vitcompact.plan.specs import SPECS

DType = Literal["float32", "float16", "bfloat16"]
AmpDType = Literal["bfloat16", "float16"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
CropMode = Literal["center", "squash", "border"]


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every verb takes."""

    json: bool = option(False, "--json", panel=fields.MESSAGES, help="Print one JSON document on stdout.")
    quiet: bool = option(
        False, "--quiet", "-q", panel=fields.MESSAGES, help="No notes and no progress, only warnings and errors."
    )
    verbose: bool = option(
        False, "--verbose", "-v", panel=fields.MESSAGES, help="More messages; full tracebacks of errors."
    )
    config: Path | None = option(
        None,
        "--config",
        panel=fields.MESSAGES,
        metavar="FILE",
        is_eager=True,
        callback=use_config,
        help="YAML file whose keys are option names; the command line wins. A vitcompact.json, or the --json output "
        "of an earlier run, repeats that run's options.",
    )


@dataclass(frozen=True, kw_only=True)
class Workdir:
    """Where the stages of a job are kept."""

    workdir: Path = option(
        Path("vitcompact-out"),
        panel=fields.OUTPUT,
        metavar="DIR",
        help="Workspace that chains analyze, convert, finetune and fold.",
    )


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How SOURCE is read."""

    model: str | None = option(
        None, panel=fields.MODEL, metavar="NAME", help="timm architecture of a bare weights file."
    )
    checkpoint: str | None = option(
        None, panel=fields.MODEL, metavar="FILE", help="Weights file with --model: another way to give SOURCE."
    )
    num_classes: int | None = option(
        None, panel=fields.MODEL, min=0, metavar="N", help="Classes of the head; by default those of the weights."
    )
    img_size: int | None = option(
        None, panel=fields.MODEL, min=1, metavar="PIXELS", help="Side of the square input; by default the model's own."
    )
    random_weights: bool = option(
        False,
        "--random-weights",
        panel=fields.MODEL,
        help="Untrained weights for a timm name: to try things without a download.",
    )


@dataclass(frozen=True, kw_only=True)
class Seed:
    """Randomness."""

    seed: int = option(0, panel=fields.RUN, metavar="N", help="Decides everything random, image subsets included.")


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where it runs."""

    device: str = option("cpu", panel=fields.RUN, help="cpu, cuda, cuda:1, mps.")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which images, and how they are prepared."""

    data_dir: str | None = option(
        None,
        panel=fields.IMAGES,
        metavar="PATH",
        help="Folder of images or of class folders, or a .tar of class folders.",
    )
    dataset: str = option(
        "",
        panel=fields.IMAGES,
        metavar="NAME",
        show_default=False,
        help="timm data set with its prefix (torch/…, hfds/…, wds/…) instead of a folder; --data-dir is then its root.",
    )
    train_split: str = option("train", panel=fields.IMAGES, metavar="NAME", help="Split to calibrate or train on.")
    val_split: str = option("validation", panel=fields.IMAGES, metavar="NAME", help="Split to evaluate on.")
    eval_data_dir: str | None = option(
        None, panel=fields.IMAGES, metavar="PATH", help="Evaluation images, where they are not a split of --data-dir."
    )
    class_map: str = option(
        "",
        panel=fields.IMAGES,
        metavar="FILE",
        show_default=False,
        help="Text file with one class name a line, in the order of the model's outputs.",
    )
    batch_size: int = option(64, "--batch-size", "-b", panel=fields.IMAGES, min=1, metavar="N", help="Images a batch.")
    workers: int = option(
        2, "--workers", "-j", panel=fields.IMAGES, min=0, metavar="N", help="Threads that read and decode images."
    )
    mean: tuple[float, ...] | None = option(
        None, panel=fields.IMAGES, numbers=float, metavar="R,G,B", help="Pixel mean on the 0..1 scale."
    )
    std: tuple[float, ...] | None = option(
        None, panel=fields.IMAGES, numbers=float, metavar="R,G,B", help="Pixel standard deviation, likewise."
    )
    crop_pct: float | None = option(
        None, panel=fields.IMAGES, metavar="SHARE", help="Share of the image kept by the central crop, above 0 up to 1."
    )
    crop_mode: CropMode | None = option(None, panel=fields.IMAGES, help="How an image is made square.")
    interpolation: Interpolation | None = option(
        None,
        panel=fields.IMAGES,
        metavar="NAME",
        help="Resampling filter: nearest, bilinear, bicubic, box, hamming or lanczos.",
    )


@dataclass(frozen=True, kw_only=True)
class NumSamples:
    """A subset of the images."""

    num_samples: int | None = option(
        None, panel=fields.IMAGES, min=1, metavar="N", help="Use a random subset of this many images; by default all."
    )


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A subset of the images, large enough for statistics."""

    num_samples: int = option(
        512, panel=fields.IMAGES, min=1, metavar="N", help="Images to calibrate on, chosen at random; needs no labels."
    )


@dataclass(frozen=True, kw_only=True)
class SelectionOptions:
    """Which layers are compacted, and by how much."""

    ratio: float | None = option(
        None,
        panel=fields.COMPACTION,
        metavar="SHARE",
        help="Share of heads to hallucinate in each layer, in (0, 1); 0.5 without a target.",
    )
    rank_ratio: float | None = option(
        None,
        panel=fields.COMPACTION,
        metavar="SHARE",
        help="Rank of each FFN's output over its width, in (0, 1); 0.5 without a target.",
    )
    target_macs: float | None = option(
        None,
        panel=fields.COMPACTION,
        metavar="SHARE",
        help="Instead of ratios: leave this share of the MACs, taken where it harms the output least. Needs images.",
    )
    target_params: float | None = option(
        None, panel=fields.COMPACTION, metavar="SHARE", help="The same for the parameters."
    )
    target_latency: float | None = option(
        None, panel=fields.COMPACTION, metavar="SHARE", help="The same for the time of a batch of 8 on this machine."
    )
    ops: str | None = option(
        None,
        panel=fields.COMPACTION,
        metavar="NAMES",
        help=f"Operators that a target may use, with commas: {', '.join(SPECS)}; by default all.",
    )
    merge_tokens: str | None = option(
        None,
        panel=fields.COMPACTION,
        metavar="auto|N,…",
        help="Pairs of similar tokens that each block of a plain ViT merges, one number or one a block; with a target, "
        "'auto' merges as many as harm least.",
    )
    only: Literal["heads", "ffn"] | None = option(
        None, panel=fields.COMPACTION, help="Compact nothing but attention heads, or nothing but FFNs."
    )
    protect: list[str] = option(
        [],
        "--protect",
        panel=fields.COMPACTION,
        metavar="GLOB",
        help="Leave these layers or blocks alone, such as 'blocks.0'; may be repeated.",
    )


@dataclass(frozen=True, kw_only=True)
class OutOptions:
    """Where and how the result is saved."""

    overwrite: bool = option(False, "--overwrite", panel=fields.OUTPUT, help="Replace an OUT that exists.")
    dtype: DType = option("float32", panel=fields.OUTPUT, help="Number format that OUT is saved in.")


@dataclass(frozen=True, kw_only=True)
class Amp:
    """Mixed precision."""

    amp: bool = option(False, "--amp", panel=fields.RUN, help="Automatic mixed precision.")
    amp_dtype: AmpDType = option("bfloat16", panel=fields.RUN, help="Number format of --amp.")
