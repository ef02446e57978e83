"""What a checkpoint says of itself in its `pretrained_cfg`: every entry of the type and range that is built on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from vitcompact.errors import CheckpointError

MAX_SIDE = 1 << 14
"""Pixels of an image that a model sees, and of the one that it is cropped from."""
_CHANNELS, _CLASSES = 4_096, 1 << 20
_FILTERS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random")
_CROPS = ("", "center", "squash", "border")

Check = Callable[[Any], bool]


def check_described(cfg: Mapping[str, Any], label: str) -> None:
    """Refuse what no image can be prepared by; entries that are missing or null have their defaults.

    Args:
        label: what holds it, for the message.

    Raises:
        CheckpointError: an entry of another type, or out of range; the message names it.
    """
    for name, (check, expected) in _ENTRIES.items():
        value = cfg.get(name)
        if value is not None and not check(value):
            raise CheckpointError(f"{label} is damaged: {name} is {str(value)[:80]!r}, expected {expected}")
    size, share = cfg.get("input_size"), cfg.get("crop_pct")
    if size is not None and share is not None and max(size[1:]) > share * MAX_SIDE:
        raise CheckpointError(f"{label} is damaged: a crop of {share} of {max(size[1:])} pixels is too small a share")


def _is_number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def _is_count(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_size(value: Any) -> bool:
    """(channels, height, width)"""
    sides = value if isinstance(value, (list, tuple)) and len(value) == 3 else (0, 0, 0)
    return _is_count(sides[0], 1, _CHANNELS) and all(_is_count(side, 1, MAX_SIDE) for side in sides[1:])


def _is_share(value: Any) -> bool:
    return _is_number(value, 0.01, 10)


def _are_means(value: Any) -> bool:
    return _are_numbers(value, -1e6)


def _are_deviations(value: Any) -> bool:
    return _are_numbers(value, 1e-6)


def _are_numbers(value: Any, least: float) -> bool:
    several = isinstance(value, (list, tuple)) and 1 <= len(value) <= _CHANNELS
    return several and all(_is_number(each, least, 1e6) and math.isfinite(each) for each in value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) <= _CLASSES and all(isinstance(each, str) for each in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


_SIZE = (_is_size, f"channels, height and width, at most {_CHANNELS:,} and {MAX_SIDE:,}")
_SHARE = (_is_share, "a share from 0.01 to 10")
_FLAG, _TEXT = (_is_flag, "true or false"), (_is_text, "a text")
_NAMES = (lambda value: _is_text(value) or _are_texts(value), "a name, or several")
_POOL = (
    lambda value: isinstance(value, (list, tuple)) and all(_is_count(n, 0, MAX_SIDE) for n in value),
    "two numbers",
)
_ENTRIES: dict[str, tuple[Check, str]] = {
    **dict.fromkeys(("input_size", "test_input_size", "min_input_size"), _SIZE),
    **dict.fromkeys(("crop_pct", "test_crop_pct"), _SHARE),
    **dict.fromkeys(("fixed_input_size", "custom_load"), _FLAG),
    **dict.fromkeys(("architecture", "tag", "description", "origin_url", "paper_name"), _TEXT),
    **dict.fromkeys(("classifier", "first_conv", "license"), _NAMES),
    **dict.fromkeys(("pool_size", "test_pool_size"), _POOL),
    "interpolation": (lambda value: value in _FILTERS, f"one of {', '.join(_FILTERS)}"),
    "crop_mode": (lambda value: value in _CROPS, "one of center, squash, border"),
    "mean": (_are_means, "a number for each channel"),
    "std": (_are_deviations, "a number above 0 for each channel"),
    "num_classes": (lambda value: _is_count(value, 0, _CLASSES), f"a number up to {_CLASSES:,}"),
    "label_names": (_are_texts, "a list of texts"),
    "label_descriptions": (lambda value: isinstance(value, Mapping), "an object of texts"),
}
