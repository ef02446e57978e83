"""The direct way through simple attention layers: the same numbers, and never where something would be left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitcompact.layers.attention import CompactAttention, HeadLayout
from vitcompact.layers.direct import UNHEARD

LAYOUT = HeadLayout((1, 0), ((2,), (3,)))
UNEVEN = HeadLayout((1, 0), ((2,), ()))


def folded(layout: HeadLayout = LAYOUT, **options: Any) -> CompactAttention:
    torch.manual_seed(0)
    layer = CompactAttention(24, layout, 5, 7, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return layer.eval()


def goes_direct(layer: CompactAttention, *args: Any, **kwargs: Any) -> bool:
    calls: list[Tensor] = []
    handle = layer.call.register_forward_pre_hook(lambda _, given: calls.append(given[0]))
    layer(torch.randn(2, 10, 24), *args, **kwargs)
    handle.remove()
    return not calls


@pytest.mark.parametrize("layout", [LAYOUT, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("identity", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gives_what_the_general_way_gives(layout: HeadLayout, identity: bool, dtype: torch.dtype) -> None:
    layer, x = folded(layout, identity=identity), torch.randn(2, 10, 24, dtype=dtype)
    assert goes_direct(layer, attn_mask=None, is_causal=False)
    layer.to(dtype)
    found = layer(x)
    layer.simple = False
    assert torch.equal(found, layer(x))


def test_autocast() -> None:
    layer, x = folded(identity=True), torch.randn(2, 10, 24)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
        layer.simple = False
        assert torch.equal(found, layer(x))


@pytest.mark.parametrize(
    "options",
    [
        {"mean": True},
        {"conv": True, "grid_size": (3, 3), "num_prefix_tokens": 1},
        {"alpha": True},
        {"filter_rank": 1, "grid_size": (3, 3), "num_prefix_tokens": 1},
        {"query_norm": nn.LayerNorm(5), "key_norm": nn.LayerNorm(5)},
        {"inner_norm": nn.LayerNorm(28)},
        {"gate": True},
        {"packing": ("q", "kv")},
        {"key_heads": 1, "value_heads": 1, "packing": ("q", "kv")},
    ],
    ids=lambda options: "-".join(options),
)
def test_layers_with_more_go_the_general_way(options: dict[str, Any]) -> None:
    assert not goes_direct(folded(**options))


def test_masks_training_and_maps_go_the_general_way() -> None:
    layer = folded()
    assert goes_direct(layer)
    assert not goes_direct(layer, attn_mask=torch.ones(10, 10, dtype=torch.bool))
    assert not goes_direct(layer, is_causal=True)
    assert not goes_direct(layer.train())
    layer.eval().backend = "plain"
    assert not goes_direct(layer)


@pytest.mark.parametrize("name", UNHEARD)
def test_hooks_are_heard(name: str) -> None:
    heard: list[str] = []
    layer = folded()
    if name == "attn_drop":
        layer.backend = "plain"  # the only way that runs it
    handle = layer.get_submodule(name).register_forward_hook(lambda *_: heard.append(name))
    layer(torch.randn(2, 10, 24))
    assert heard == [name]
    handle.remove()
    layer.backend = "auto"
    assert goes_direct(layer)
