"""Pictures inside pages, as data URIs."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

LARGEST = 224
"""Longest side of a picture in pixels."""
_STOPS = np.array([[13, 8, 60], [84, 15, 109], [155, 36, 100], [220, 80, 57], [251, 155, 6], [252, 255, 164]], float)
"""Dark violet to light yellow, which reads on light and dark pages alike."""


def picture_uri(pixels: np.ndarray, largest: int = LARGEST) -> str:
    """A picture `(height, width, 1 or 3)` of uint8, no larger than `largest`."""
    shown = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if max(shown.size) > largest:
        scale = largest / max(shown.size)
        shown = shown.resize(
            (max(1, round(shown.width * scale)), max(1, round(shown.height * scale))), Image.Resampling.LANCZOS
        )
    if max(shown.size) <= 96:  # small ones are enlarged on the page, where blocks of JPEG would show
        return _uri(shown, "png", optimize=True)
    return _uri(shown, "jpeg", quality=85)


def heat_uri(values: np.ndarray) -> str:
    """A map `(height, width)` of any range, its largest value brightest: a small picture with 64 colours."""
    low, high = float(values.min()), float(values.max())
    level = np.clip((values - low) / max(high - low, 1e-12) * 63, 0, 63).round().astype(np.uint8)
    shown = Image.fromarray(level, mode="P")
    at = np.linspace(0, len(_STOPS) - 1, 64)
    palette = np.stack([np.interp(at, np.arange(len(_STOPS)), _STOPS[:, i]) for i in range(3)], axis=1)
    shown.putpalette(palette.round().astype(np.uint8).tobytes())
    return _uri(shown, "png", optimize=True, bits=6)


def _uri(shown: Image.Image, kind: str, **options: object) -> str:
    buffer = io.BytesIO()
    shown.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
