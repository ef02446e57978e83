"""Fixtures of the training tests."""

from __future__ import annotations

import pytest
import torch
from timm.models import VisionTransformer
from torch import Tensor

from .helpers import SIZE, make_student, make_teacher


@pytest.fixture
def teacher() -> VisionTransformer:
    return make_teacher()


@pytest.fixture
def student(teacher: VisionTransformer) -> VisionTransformer:
    return make_student(teacher)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(24, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
