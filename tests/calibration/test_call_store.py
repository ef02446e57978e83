"""Calls of blocks put aside: whole again, arguments that every batch shares kept once, layers ahead run once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import vitcompact
from vitcompact.calibration.call_store import CallStore
from vitcompact.calibration.store import ActivationStore
from vitcompact.calibration.walker import BlockCall

CPU = torch.device("cpu")


def calls() -> list[BlockCall]:
    """Of three batches: positions that two of them share, a mask of their own, and what is no tensor."""
    positions, others = torch.randn(5, 4), torch.randn(3, 4)
    return [
        BlockCall(torch.randn(2, 5, 4), (p.clone(), (7, 7)), {"mask": torch.randn(2, 5), "last": False})
        for p in (positions, positions, others)
    ]


@pytest.mark.parametrize("limit", [0, 1e9])
def test_calls_come_back_whole(limit: float) -> None:
    given = calls()
    with ActivationStore(limit) as store:
        kept = CallStore(store)
        for call in given:
            kept.append(call)
        for batch, call in enumerate(given):
            found = kept.get(batch, CPU)
            assert torch.equal(found.x, call.x)
            assert torch.equal(found.rest[0], call.rest[0])
            assert found.rest[1] == (7, 7)
            assert torch.equal(found.kwargs["mask"], call.kwargs["mask"])
            assert found.kwargs["last"] is False
        last, _ = kept.others(-1, CPU)
        assert torch.equal(last[0], given[-1].rest[0])


def test_what_batches_share_is_kept_once_and_all_is_forgotten() -> None:
    with ActivationStore(1e9) as store:
        kept = CallStore(store)
        for call in calls():
            kept.append(call)
        assert Counter(kind for kind, _ in store._memory) == {"call": 3, "call-0": 2, "call-mask": 3}
        kept.clear()
        assert not store._memory
        for call in calls():  # of the next block
            kept.append(call)
        kept.clear()
        assert not store._memory


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}),
        ("eva02_tiny_patch14_224", {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 16}),
        ("pvt_v2_b0", {"embed_dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)}),
    ],
)
def test_layers_ahead_of_a_block_run_once_for_each_stream(name: str, shape: dict[str, Any]) -> None:
    """Whatever is measured: images are looked at again only where the model itself has to be run again."""
    model = timm.create_model(name, num_classes=3, **shape).eval()
    stem, seen = next(m for m in model.modules() if isinstance(m, nn.Conv2d)), Counter[str]()
    images = torch.randn(24, 3, 64, 64)
    found = vitcompact.plan(model, ratio=0.5, rank_ratio=0.5)
    stem.register_forward_pre_hook(lambda _, args: seen.update(images=len(args[0])))
    vitcompact.convert(model, images=images, plan=found, batch_size=8, without=["sensitivity"])
    blocks = len({layer.name.rpartition(".")[0] for layer in found.layers})
    assert seen["images"] <= 2 * blocks * len(images) + 16


def test_tensors_of_single_batches_are_not_mixed_up() -> None:
    """TNT's blocks take a second tensor of every image (timm/models/tnt.py): the same in any batches, to rounding."""
    model = timm.create_model("tnt_s_legacy_patch16_224", img_size=64, depth=2, num_classes=3).eval()
    images = torch.randn(16, 3, 64, 64)

    def converted(batch_size: int) -> Tensor:
        small = vitcompact.convert(model, images=images, ratio=0.5, rank_ratio=0.5, batch_size=batch_size)
        answer: Tensor = small(images)
        return answer

    torch.testing.assert_close(converted(4), converted(16), rtol=1e-3, atol=1e-4)
