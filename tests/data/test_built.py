"""Models of another size than their configuration says: timm does not note it there."""

from __future__ import annotations

import pytest
import timm
import torch

import vitcompact
from vitcompact.data import resolve_input
from vitcompact.models.cost import count

BUILT = {
    "vit_tiny_patch16_224": (96, 160),
    "crossvit_tiny_240": (480, 480),
    "twins_svt_small": (288, 288),
    "levit_128s": (288, 288),
    "hiera_tiny_224": (256, 256),
}
MORE = {
    "coat_tiny": (288, 288),
    "volo_d1_224": (288, 288),
    "tnt_s_patch16_224": (288, 288),
    "efficientformerv2_s0": (160, 160),
    "botnet26t_256": (320, 320),
}


@pytest.mark.parametrize(("name", "size"), BUILT.items(), ids=BUILT)
def test_the_size_that_a_model_was_built_for(name: str, size: tuple[int, int]) -> None:
    check(name, size)


@pytest.mark.broad
@pytest.mark.parametrize(("name", "size"), MORE.items(), ids=MORE)
def test_more_models_of_another_size(name: str, size: tuple[int, int]) -> None:
    check(name, size)


def check(name: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model, own = (timm.create_model(name, **kwargs).eval() for kwargs in ({"img_size": size}, {}))
    assert resolve_input(model).input_size == (3, *size)
    assert resolve_input(own).input_size == tuple(own.pretrained_cfg["input_size"])
    count(model, resolve_input(model).input_size)


def test_any_size_will_do_where_none_is_fixed() -> None:
    model = timm.create_model("test_convnext", pretrained_cfg_overlay={"input_size": (3, 96, 128)})
    assert resolve_input(model).input_size == (3, 96, 128)


def test_such_a_model_is_converted_for_a_budget() -> None:
    torch.manual_seed(0)
    shape = {"embed_dim": (32, 48, 64), "num_heads": (2, 3, 4), "depth": (1, 1, 1), "img_size": 96}
    model = timm.create_model("levit_128s", num_classes=3, **shape).eval()
    plan = vitcompact.plan(model, images=torch.randn(8, 3, 96, 96), target_macs=0.9)
    assert plan.layers
