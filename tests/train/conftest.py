"""Fixtures of the training tests."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from .helpers import SIZE, make_student, make_teacher


@pytest.fixture
def teacher() -> nn.Module:
    return make_teacher()


@pytest.fixture
def student(teacher: nn.Module) -> nn.Module:
    return make_student(teacher)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(24, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
