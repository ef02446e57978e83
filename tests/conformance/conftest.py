"""A model on its way through the whole job, each stage made once per case."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import vitcompact
from tests.conformance.suite import Case
from vitcompact.folding.verify import perturbed


@pytest.fixture(scope="class")
def original(case: Case) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(case.name, pretrained=False, num_classes=7, **case.kwargs)
    return with_statistics(perturbed(model, seed=1), case.size)


def with_statistics(model: nn.Module, size: int) -> nn.Module:
    """Evaluation mode, with batch norms that normalise: random weights else forget the input, or blow it up."""
    update_bn([torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(4))], model)
    return model.eval()


@pytest.fixture(scope="class")
def images(case: Case) -> Tensor:
    return torch.randn(16, 3, case.size, case.size, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="class")
def compact(original: nn.Module, images: Tensor) -> nn.Module:
    state = copy.deepcopy(original.state_dict())
    converted = vitcompact.convert(original, ratio=0.5, rank_ratio=0.5, images=images, branches=1)
    assert all(torch.equal(state[key], value) for key, value in original.state_dict().items())
    return converted


@pytest.fixture(scope="class")
def trained(case: Case, compact: nn.Module, images: Tensor) -> nn.Module:
    """One step of training, then every parameter moved and every running statistic measured again."""
    model = copy.deepcopy(compact).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = model(images).square().mean()
    loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing
    optimizer.step()
    return with_statistics(perturbed(model, seed=3), case.size)


@pytest.fixture(scope="class")
def folded(trained: nn.Module) -> nn.Module:
    return vitcompact.fold(trained)
