"""`preprocessor_config.json` of Hugging Face transformers, as timm's `pretrained_cfg` says it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitcompact.checkpoint.foreign.config import Config
from vitcompact.checkpoint.json_files import read_json

FILE = "preprocessor_config.json"
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALVES = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
SQUASH_BILINEAR = {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}
CROP_BICUBIC = {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"}
# Pillow's numbers of its filters, in which the library writes them.
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def preparation(directory: Path) -> tuple[dict[str, Any], tuple[int, int] | None] | None:
    """Entries of `pretrained_cfg`, and the size (height, width) of prepared images; None without a file.

    Raises:
        CheckpointError: a damaged file.
    """
    path = directory / FILE
    if not path.is_file():
        return None
    config = Config(read_json(path), str(path))
    crops = config.flag("do_center_crop", config.data.get("crop_size") is not None)
    resized = _resized(config, crops) if config.flag("do_resize", True) else None
    cropped = _cropped(config) if crops else None
    final = cropped or ((resized, resized) if isinstance(resized, int) else resized)
    found: dict[str, Any] = {"crop_mode": "squash" if isinstance(resized, tuple) else "center", "crop_pct": 1.0}
    if cropped is not None and resized is not None:
        found["crop_pct"] = min(1.0, min(cropped) / (min(resized) if isinstance(resized, tuple) else resized))
    if isinstance(config.data.get("crop_pct"), float) and config.data["crop_pct"] > 0:
        found["crop_pct"] = config.data["crop_pct"]
    if isinstance(resample := config.data.get("resample"), int) and resample in _FILTERS:
        found["interpolation"] = _FILTERS[resample]
    found.update(_normalisation(config))
    return found, final


def _normalisation(config: Config) -> dict[str, Any]:
    if not config.flag("do_normalize", True):
        return {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    found = {}
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        values = config.data.get(theirs)
        if values is None:
            continue
        if not isinstance(values, list) or not all(isinstance(value, (int, float)) for value in values):
            raise config.error(theirs, "expected a list of numbers")
        found[ours] = tuple(map(float, values))
    return found


def _resized(config: Config, crops: bool) -> tuple[int, int] | int | None:
    """(height, width) where images are squashed to both, the shortest side where their shape is kept.

    One number means the shortest side to the processors that crop, but for those of ViT and DeiT.
    """
    value = config.data.get("size")
    if value is None:
        return None
    if isinstance(value, Mapping):
        section = config.section("size")
        if "shortest_edge" in value:
            return section.integer("shortest_edge", 1)
        return section.integer("height", 224), section.integer("width", 224)
    kind = str(config.data.get("image_processor_type") or config.data.get("feature_extractor_type") or "")
    side = config.size("size", 224)
    return side[0] if isinstance(value, int) and crops and not kind.startswith(("DeiT", "ViT")) else side


def _cropped(config: Config) -> tuple[int, int] | None:
    value = config.data.get("crop_size")
    if isinstance(value, Mapping):
        section = config.section("crop_size")
        return section.integer("height", 224), section.integer("width", 224)
    return None if value is None else config.size("crop_size", 224)
