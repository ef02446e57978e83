from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitcompact.utils.hooks import hooked, recorded_inputs, recorded_outputs


class Twice(nn.Module):
    """Calls its layer twice, the second time on what the first call gave; `fail` raises in between."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor, fail: bool = False) -> Tensor:
        x = self.layer(x)
        if fail:
            raise RuntimeError("stop")
        out: Tensor = self.layer(x)
        return out


def hooks_left(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_the_latest_call_is_kept_and_nothing_stays_behind() -> None:
    model, x = Twice(), torch.randn(2, 3)
    with recorded_inputs(model, ["layer"]) as inputs, recorded_outputs(model, ["", "layer"]) as outputs:
        out = model(x)
    assert torch.equal(inputs["layer"], model.layer(x))
    assert outputs["layer"] is outputs[""] is out
    assert not hooks_left(model)
    model(x)
    assert outputs["layer"] is out


def test_hooks_go_after_an_error_and_with_an_unknown_module() -> None:
    model = Twice()
    with pytest.raises(RuntimeError, match="stop"), recorded_outputs(model, ["layer"]) as outputs:
        model(torch.randn(2, 3), fail=True)
    assert set(outputs) == {"layer"}
    with pytest.raises(AttributeError), recorded_outputs(model, ["layer", "head"]):
        pass
    assert not hooks_left(model)


def test_hooks_see_keyword_arguments_and_may_change_the_output() -> None:
    model, seen = Twice(), []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(kwargs)

    with hooked(model, {"": before}, before=True, with_kwargs=True), hooked(model, {"layer": lambda *_: torch.ones(3)}):
        assert torch.equal(model(torch.randn(2, 3), fail=False), torch.ones(3))
    assert seen == [{"fail": False}]
