"""Blocks whose input depends on more than the block before them: shortcuts past all blocks of a stage."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import vitcompact
from vitcompact.calibration.streams import Streams
from vitcompact.calibration.walker import BlockWalker
from vitcompact.models import inspect
from vitcompact.utils.hooks import hooked, recorded_outputs


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("mobilevit_xxs", num_classes=3).eval()


def images(seed: int, count: int = 4) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def inputs_of(model: nn.Module, blocks: tuple[str, ...], batch: Tensor) -> dict[str, Tensor]:
    """What each block is called with in a plain forward pass."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _, args: found.update({name: args[0]})

    with hooked(model, {name: keep(name) for name in blocks}, before=True), torch.no_grad():
        model(batch)
    return found


def test_inputs_follow_from_the_outputs_that_are_needed(model: nn.Module) -> None:
    with torch.no_grad():
        walker = BlockWalker(model, inspect(model).sites, images(0, 2))
        assert not walker.unreachable
        assert any(walker.further_back)
        batch = images(1)
        with recorded_outputs(model, walker.blocks) as outputs:
            wanted = inputs_of(model, walker.blocks, batch)
        for index, name in enumerate(walker.blocks):
            known = {block: outputs[walker.blocks[block]] for block in walker.needed(index)}
            assert torch.equal(walker.enter(index, batch, known).x, wanted[name])
            assert all(walker.last_use(block) >= index for block in walker.needed(index))


def test_the_converted_stream_is_what_the_converted_model_computes(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also past a shortcut, which starts in blocks that were converted long before; nothing is kept for longer."""
    called: dict[str, Tensor] = {}
    kept: list[set[str]] = []
    leave = Streams.leave

    def spied(streams: Streams, *args: Any) -> None:
        called[streams.walker.blocks[streams._index]] = streams._call(0).x.clone()
        leave(streams, *args)
        kept.append({kind for kind, _ in streams._store._memory if "-of-" in kind})

    monkeypatch.setattr(Streams, "leave", spied)
    batch = images(2)
    converted = vitcompact.convert(model, images=batch)
    assert not vitcompact.results(converted).plan.skipped
    wanted = inputs_of(converted, tuple(called), batch)
    for name, found in called.items():
        torch.testing.assert_close(found, wanted[name], rtol=1e-4, atol=1e-4 * float(wanted[name].abs().max()))
    assert max(map(len, kept)) > 2  # of two streams
    assert len(kept[-1]) == 2


@pytest.mark.parametrize("target_macs", [None, 0.9])
def test_a_layer_that_runs_several_times_is_left_alone(target_macs: float | None) -> None:
    """CoaT's parallel blocks share an FFN among scales (timm/models/coat.py)."""
    shape = {"embed_dims": (16,) * 4, "serial_depths": (1,) * 4, "parallel_depth": 1, "img_size": 64}
    model = timm.create_model("coat_tiny", num_classes=3, num_heads=2, crpe_window={3: 2}, **shape).eval()
    plan = vitcompact.plan(model, images=images(3), target_macs=target_macs)
    assert ("parallel_blocks.0.mlp2", "it runs more than once a forward pass") in {
        (skipped.name, skipped.reason) for skipped in plan.skipped
    }
    assert {layer.name for layer in plan.layers} <= {f"serial_blocks{i}.0.mlp" for i in range(1, 5)}
    assert plan.layers
