"""torch.nn.MultiheadAttention inside a module of the user's own: whole, hallucinated, trained, folded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitcompact
from tests.attached import parity_of, plan_of
from vitcompact.errors import UsageError
from vitcompact.folding.verify import perturbed
from vitcompact.models import inspect
from vitcompact.models.cores import whole_core


class Encoder(nn.Module):
    """PyTorch's own layers, with what a timm module has."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 5
        self.embed = nn.Conv2d(3, 32, 8, stride=8)
        layers = [nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True) for _ in range(2)]
        self.blocks = nn.ModuleList(layers)
        self.head = nn.Linear(32, 5)

    def forward_features(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.forward_features(x).mean(dim=1))
        return out


def test_the_whole_job() -> None:
    torch.manual_seed(0)
    model, images = perturbed(Encoder(), seed=1).eval(), torch.randn(16, 3, 32, 32)
    compact = vitcompact.convert(model, images=images)
    assert [layer.name for layer in plan_of(compact).layers] == ["blocks.0.self_attn", "blocks.1.self_attn"]
    compact.train()(images).square().mean().backward()
    assert all(parameter.grad is not None for parameter in compact.parameters())
    moved = perturbed(compact, seed=2).eval()
    folded = vitcompact.fold(moved, images=images)
    assert parity_of(folded).rel_diff <= 2e-4
    assert (folded(images) - model(images)).abs().max() > 1e-2


def test_a_budget_weighs_what_returns_its_maps_too() -> None:
    torch.manual_seed(0)
    model, images = perturbed(Encoder(), seed=1).eval(), torch.randn(96, 3, 32, 32)
    compact = vitcompact.convert(model, images=images, target_macs=0.9)
    assert {layer.name for layer in plan_of(compact).layers} <= {"blocks.0.self_attn", "blocks.1.self_attn"}
    reached = plan_of(compact).reached
    assert reached is not None
    assert 0.8 < reached.left <= 0.9


@pytest.mark.parametrize(
    "masks",
    [
        {},
        {"attn_mask": torch.ones(9, 9).triu(1).bool()},
        {"attn_mask": torch.randn(9, 9)},
        {"attn_mask": torch.randn(2 * 4, 9, 9)},
        {"key_padding_mask": torch.tensor([[False] * 9, [False] * 5 + [True] * 4])},
        {"key_padding_mask": torch.tensor([[False] * 9, [True] + [False] * 8]), "attn_mask": torch.randn(9, 9)},
    ],
)
def test_masks_mean_the_same(masks: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = perturbed(Encoder(), seed=1).eval()
    site = inspect(model).attention[0]
    layer, x = model.get_submodule(site.name), torch.randn(2, 9, 32)
    if masks.get("key_padding_mask") is not None and masks.get("attn_mask") is not None:
        padding = torch.zeros(2, 9).masked_fill(masks["key_padding_mask"], float("-inf"))  # one type, as torch asks for
        masks = {**masks, "key_padding_mask": padding}
    wanted, _ = layer(x, x, x, need_weights=False, **masks)
    got, maps = whole_core(model, site)(x, x, x, need_weights=False, **masks)
    assert maps is None
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_attention_to_other_tokens_is_refused() -> None:
    model = Encoder().eval()
    core = whole_core(model, inspect(model).attention[0])
    x = torch.randn(2, 9, 32)
    with pytest.raises(UsageError, match="other tokens than its own"):
        core(x, x + 1, x)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"batch_first": False}, "tokens come before images"),
        ({"add_zero_attn": True}, "adds a key of zeros"),
        ({"add_bias_kv": True}, "unknown part bias_k, bias_v"),
        ({"kdim": 16, "vdim": 16}, "unknown part k_proj_weight"),
    ],
)
def test_unknown_parts_are_refused(options: dict[str, Any], reason: str) -> None:
    model = Encoder()
    model.blocks[0].self_attn = nn.MultiheadAttention(32, 4, **({"batch_first": True} | options))
    assert reason in {item.name: item.reason for item in inspect(model).skipped}["blocks.0.self_attn"]
