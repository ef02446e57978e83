"""The images that budgets are measured on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from .helpers import SIZE


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(48, *SIZE, generator=torch.Generator().manual_seed(0))
