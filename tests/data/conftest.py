"""Small image folders, good and bad."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
from timm.models import VisionTransformer

from .image_files import corrupt_files, fill


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """3 classes of 6 pictures."""
    return fill(tmp_path / "images")


@pytest.fixture
def damaged_folder(image_folder: Path) -> Path:
    """The same with every kind of damaged file in the last class."""
    for name, content in corrupt_files().items():
        (image_folder / "cat" / name).write_bytes(content)
    return image_folder


@pytest.fixture(scope="module")
def model() -> VisionTransformer:
    return timm.create_model("test_vit", img_size=32, num_classes=3)
