"""Where images come from and how they are prepared: the options of timm's scripts that this project keeps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitcompact.errors import UsageError

PREFIXES = ("torch", "hfds", "hfids", "tfds", "wds")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")


@dataclass(frozen=True)
class DataOptions:
    """One data set and how its images are prepared; names and meanings are those of timm's scripts.

    Attributes:
        data_dir: an ImageFolder directory, a flat folder of images, a `.tar` of class folders; the root (or cache)
            folder of a `dataset` that has a prefix.
        dataset: empty for folders and tars, else a timm name with its prefix: `torch/...`, `hfds/...`, `wds/...`.
        train_split: split that calibration and training read; a folder of this name is looked for in `data_dir`.
        val_split: split that evaluation reads.
        class_map: text file with one class name a line, in the order of the model's outputs.
        img_size: side of the model's square input in pixels; None is the model's own size.
        mean: per-channel mean on the 0..1 scale, one value or one a channel; None is the model's own.
        std: per-channel standard deviation, likewise.
        crop_pct: share of the resized image that the central crop keeps, in (0, 1]; None is the model's own.
        crop_mode: `center`, `squash` or `border`; empty is the model's own.
        interpolation: resampling filter; empty is the model's own.
        batch_size: images a batch.
        workers: threads that read and decode ahead; 0 decodes in the caller's thread. Results do not depend on it.
        num_samples: a seeded random subset of this many images; None is all of them.
        seed: decides the subset, the order of training images and their augmentation.
        cache_mb: memory in MiB that decoded 8-bit images may fill so that later passes do not decode again.
    """

    data_dir: str | Path | None = None
    dataset: str = ""
    train_split: str = "train"
    val_split: str = "validation"
    class_map: str = ""
    img_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_pct: float | None = None
    crop_mode: str = ""
    interpolation: str = ""
    batch_size: int = 64
    workers: int = 2
    num_samples: int | None = None
    seed: int = 0
    cache_mb: int = 512

    def __post_init__(self) -> None:
        self._check_source()
        _at_least("batch size", self.batch_size, 1)
        _at_least("workers", self.workers, 0)
        _at_least("cache-mb", self.cache_mb, 0)
        _at_least("num-samples", self.num_samples, 1)
        _at_least("img-size", self.img_size, 1)
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise UsageError(f"crop-pct must be above 0 and at most 1, got {self.crop_pct}")
        if any(value <= 0 for value in self.std or ()):
            raise UsageError(f"std must be positive, got {self.std}")
        _one_of("interpolation", self.interpolation, INTERPOLATIONS)
        _one_of("crop-mode", self.crop_mode, CROP_MODES)

    def _check_source(self) -> None:
        prefix, slash, name = self.dataset.partition("/")
        if self.dataset and (not slash or not name or prefix.lower() not in PREFIXES):
            raise UsageError(
                f"unknown dataset '{self.dataset}': leave it empty for folders and tars, or begin it with one of "
                + ", ".join(f"{p}/" for p in PREFIXES)
            )


def _at_least(name: str, value: int | None, minimum: int) -> None:
    if value is not None and value < minimum:
        raise UsageError(f"{name} must be at least {minimum}, got {value}")


def _one_of(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value and value not in accepted:
        raise UsageError(f"unknown {name} '{value}': accepted are {', '.join(accepted)}")
