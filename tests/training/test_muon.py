"""Muon iterates in a number format that the device has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2
from timm.optim import muon as timm_muon
from torch import Tensor, nn

from vitcompact.training import optimizer as module
from vitcompact.training.optimizer import ORTHOGONALIZE, in_native_precision


@pytest.mark.parametrize("native", [True, False])
def test_iterations_are_not_emulated(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    original = getattr(timm_muon, ORTHOGONALIZE)

    def spy(update: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = original(update, *args, **kwargs)
        seen.append(found.dtype)
        return found

    monkeypatch.setattr(timm_muon, ORTHOGONALIZE, spy)
    monkeypatch.setattr(module, "computes_bfloat16", lambda device: native)
    torch.manual_seed(0)
    model = nn.Linear(6, 4, bias=False)
    before = model.weight.detach().clone()
    optimizer = in_native_precision(create_optimizer_v2(model, opt="muon", lr=0.1), torch.device("cpu"))
    model(torch.randn(8, 6)).square().sum().backward()
    optimizer.step()
    assert seen == [torch.bfloat16 if native else torch.float32]
    assert getattr(timm_muon, ORTHOGONALIZE) is spy, "timm's function is back in its place"
    assert not torch.equal(model.weight, before)


def test_timm_is_whole_again_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "computes_bfloat16", lambda device: False)
    original = getattr(timm_muon, ORTHOGONALIZE)
    optimizer = in_native_precision(create_optimizer_v2(nn.Linear(6, 4), opt="muon", lr=0.1), torch.device("cpu"))

    def closure() -> float:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        optimizer.step(closure)
    assert getattr(timm_muon, ORTHOGONALIZE) is original
