"""Where images come from, how they are prepared and varied: the options of timm's scripts that this project keeps."""

# ruff: noqa: RUF009  (option() returns a dataclasses.field, which every class gets anew)

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from vitcompact.errors import UsageError
from vitcompact.options.declare import IMAGES, TRAINING, check_limits, one_of, option
from vitcompact.options.shared import Seeded

PREFIXES = ("torch", "hfds", "hfids", "tfds", "wds")
Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
CropMode = Literal["center", "squash", "border"]

CLASSIFIER_SCALE = 0.8
FEATURE_SCALE = 0.35
"""Smallest share of an image's area in a crop, both measured (docs/results.md)."""

_OWN = "the model's own"


@dataclass(frozen=True)
class DataOptions(Seeded):
    """One data set and how its images are prepared; names and meanings are those of timm's scripts.

    Attributes:
        data_dir: also the root (or cache) folder of a `dataset` that has a prefix.
        train_split: a folder of this name is looked for in `data_dir`.
        img_size: side of the model's square input in pixels; None is the model's own.
        mean, std: one value, or one for each channel.
        workers: 0 decodes in the caller's thread. Results do not depend on it.
        seed: decides the subset, the order of training images and their augmentation.
    """

    data_dir: str | Path | None = option(
        None, "Folder of images or of class folders, or a .tar of class folders.", panel=IMAGES, unit="PATH"
    )
    dataset: str = option(
        "",
        "timm data set with its prefix (torch/…, hfds/…, wds/…) instead of a folder; `data_dir` is then its root.",
        panel=IMAGES,
        unit="NAME",
        rare=True,
    )
    train_split: str = option("train", "Split to calibrate or train on.", panel=IMAGES, unit="NAME", rare=True)
    val_split: str = option("validation", "Validation split to evaluate on.", panel=IMAGES, unit="NAME", rare=True)
    class_map: str = option(
        "",
        "Text file with one class name per line, in the order of the model's outputs.",
        panel=IMAGES,
        unit="FILE",
        rare=True,
    )
    input_key: str | None = option(
        None,
        "Column or key of the images in a data set with columns.",
        panel=IMAGES,
        unit="NAME",
        unset="timm's own",
        rare=True,
    )
    target_key: str | None = option(
        None, "Column or key of the labels.", panel=IMAGES, unit="NAME", unset="timm's own", rare=True
    )
    img_size: int | None = None
    mean: tuple[float, ...] | None = option(
        None, "Pixel mean on the 0..1 scale.", panel=IMAGES, unit="R,G,B", unset=_OWN, items=float, rare=True
    )
    std: tuple[float, ...] | None = option(
        None,
        "Pixel standard deviation on the same scale.",
        panel=IMAGES,
        unit="R,G,B",
        unset=_OWN,
        items=float,
        above=0,
        rare=True,
    )
    crop_pct: float | None = option(
        None,
        "Share of the resized image's side that the center crop keeps, above 0 and at most 1.",
        panel=IMAGES,
        unit="SHARE",
        unset=_OWN,
        above=0,
        most=1,
        rare=True,
    )
    crop_mode: CropMode | None = option(None, "How an image is made square.", panel=IMAGES, unset=_OWN, rare=True)
    interpolation: Interpolation | None = option(
        None,
        f"Resampling filter: {', '.join(get_args(Interpolation))}.",
        panel=IMAGES,
        unit="NAME",
        unset=_OWN,
        rare=True,
    )
    batch_size: int = option(64, "Images per batch.", panel=IMAGES, unit="N", short="b", least=1)
    workers: int = option(
        2, "Threads that read and decode images.", panel=IMAGES, unit="N", short="j", least=0, rare=True
    )
    num_samples: int | None = option(
        None, "Number of images to use, drawn at random.", panel=IMAGES, unit="N", unset="all", least=1
    )
    cache_mb: int = option(512, "MiB that decoded 8-bit images may fill for later passes.", least=0)

    def __post_init__(self) -> None:
        check_limits(self)
        self._check_source()
        if self.img_size is not None and self.img_size < 1:
            raise UsageError(f"`img_size` must be at least 1, got {self.img_size}")
        one_of("interpolation", self.interpolation, get_args(Interpolation))
        one_of("crop_mode", self.crop_mode, get_args(CropMode))

    def _check_source(self) -> None:
        prefix, slash, name = self.dataset.partition("/")
        if self.dataset and (not slash or not name or prefix.lower() not in PREFIXES):
            raise UsageError(
                f"unknown `dataset` '{self.dataset}': leave it empty for folders and tars, or begin it with one of "
                + ", ".join(f"{p}/" for p in PREFIXES)
            )


@dataclass(frozen=True)
class Augment:
    """What is varied from epoch to epoch.

    Attributes:
        scale: smallest and largest share; None is from `CLASSIFIER_SCALE`, or `FEATURE_SCALE` for a model without a
            head, to 1 (`resolved`).
        ratio: smallest and largest width over height of the crop.
        hflip: probability of a left-right flip; 0 for images that change meaning when mirrored.
    """

    scale: tuple[float, float] | None = option(
        None,
        "Smallest and largest share of an image's area that a random crop takes.",
        panel=TRAINING,
        unit="MIN,MAX",
        unset=f"{CLASSIFIER_SCALE},1, or {FEATURE_SCALE},1 for a model without a head",
        items=float,
        rare=True,
    )
    ratio: tuple[float, float] = (0.9, 1 / 0.9)
    hflip: float = 0.5
    aa: str | None = option(
        None,
        "timm's augmentation policy after the crop, such as rand-m9-mstd0.5 (RandAugment) or original.",
        panel=TRAINING,
        unit="POLICY",
        unset="none",
        rare=True,
    )
    no_aug: bool = option(
        False, "Train on images as they are when they are judged: no crops, no flips.", panel=TRAINING, rare=True
    )

    def __post_init__(self) -> None:
        if self.no_aug and (self.aa is not None or self.scale is not None):
            raise UsageError(f"`no_aug` excludes `{'scale' if self.aa is None else 'aa'}`: leave one of them out")
        if self.scale is not None and len(self.scale) != 2:
            raise UsageError(f"`scale` takes two shares, smallest and largest, got {len(self.scale)}")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UsageError(f"`scale` of a crop must satisfy 0 < smallest <= largest <= 1, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UsageError(f"crop ratio must satisfy 0 < smallest <= largest, got {self.ratio}")
        if not 0 <= self.hflip <= 1:
            raise UsageError(f"flip probability must be in [0, 1], got {self.hflip}")

    @property
    def crops(self) -> tuple[float, float]:
        """`scale`, or what it is for a classifier where it was left open."""
        return self.scale or (CLASSIFIER_SCALE, 1.0)

    def resolved(self, model: object) -> Augment:
        """With a `scale`: what a classifier says of a small part of an image means little, features of it do."""
        if self.scale is not None or getattr(model, "num_classes", True):
            return self
        return replace(self, scale=(FEATURE_SCALE, 1.0))
