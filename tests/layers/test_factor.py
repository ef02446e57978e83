"""The factor pair and its branches."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vitcompact.layers.branches import BranchedLinear
from vitcompact.layers.factor import FactorizedLinear


def trained(branches: int = 2) -> FactorizedLinear:
    torch.manual_seed(0)
    factor = FactorizedLinear(12, 8, 4, branches)
    with torch.no_grad():
        for parameter in factor.parameters():
            parameter.copy_(torch.randn_like(parameter))
    factor.train()
    for _ in range(3):
        factor(torch.randn(2, 5, 12))
    return factor.eval()


def test_branches_start_silent_and_learn() -> None:
    factor = FactorizedLinear(12, 8, 4)
    x = torch.randn(2, 5, 12)
    wanted = factor(x)
    factor.grow(1)
    torch.testing.assert_close(factor(x), wanted)
    assert isinstance(factor.reduce, BranchedLinear)
    assert factor.reduce.branch_ratio() == 0
    optimizer = torch.optim.SGD(factor.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (factor(x) - 1).square().mean().backward()
        optimizer.step()
    assert factor.reduce.branch_ratio() > 0
    grads = [branch.get_parameter("linear.weight").grad for branch in factor.reduce.branches]
    assert any(grad is not None and grad.abs().sum() > 0 for grad in grads)


def test_fuse_is_equal_and_idempotent() -> None:
    factor, x = trained(), torch.randn(2, 5, 12)
    wanted, product = factor(x), factor.weight
    factor.fuse()
    assert isinstance(factor.reduce, nn.Linear)
    assert factor.reduce.bias is None
    torch.testing.assert_close(factor(x), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(factor.weight, product, rtol=1e-4, atol=1e-4)
    before = {name: value.clone() for name, value in factor.state_dict().items()}
    factor.fuse()
    assert all(torch.equal(value, before[name]) for name, value in factor.state_dict().items())


def test_recomputation_updates_statistics_once() -> None:
    torch.manual_seed(0)
    once, twice = FactorizedLinear(12, 8, 4, 1), FactorizedLinear(12, 8, 4, 1)
    twice.load_state_dict(once.state_dict())
    x = torch.randn(2, 5, 12, requires_grad=True)
    assert isinstance(once.reduce, BranchedLinear)
    seen = once.reduce.branches[0].get_submodule("linear")(x).flatten(0, 1)
    once.train()(x).sum().backward()
    torch.testing.assert_close(once.get_buffer("reduce.branches.0.norm.running_mean"), 0.1 * seen.mean(0))
    torch.testing.assert_close(once.get_buffer("reduce.branches.0.norm.running_var"), 0.9 + 0.1 * seen.var(0))
    checkpoint(twice.train(), x, use_reentrant=False).sum().backward()
    for (name, first), second in zip(once.named_buffers(), twice.buffers(), strict=True):
        torch.testing.assert_close(first, second, msg=name)


@pytest.mark.parametrize("training", [True, False])
def test_made_with_branches_is_what_grows_them(training: bool) -> None:
    made, grown = FactorizedLinear(12, 8, 4, 2), FactorizedLinear(12, 8, 4)
    grown.train(training).grow(2)
    assert all(module.training is training for module in grown.modules())
    shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in (made, grown)]
    assert shapes[0] == shapes[1]


def test_the_ratio_of_branches_is_that_of_norms() -> None:
    reduce = trained().reduce
    assert isinstance(reduce, BranchedLinear)
    branches = torch.stack([branch.merged()[0] for branch in reduce.branches]).sum(0)  # type: ignore[operator]
    assert reduce.branch_ratio() == pytest.approx(
        float((branches.norm() / reduce.main.weight.double().norm()).detach())
    )
