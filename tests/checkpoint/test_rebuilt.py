"""A saved model computes the same when it is loaded, or is not saved: what its arguments do not say is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import GELUTanh, QuickGELU
from timm.models import VisionTransformer
from torch import Tensor, nn

from vitcompact.checkpoint import load, save
from vitcompact.checkpoint.overrides import Override, apply_overrides, find_overrides, overrides_from_json
from vitcompact.checkpoint.rebuilt import _difference as difference
from vitcompact.errors import CheckpointError, UsageError, VerificationError

from .helpers import perturb

Change = Callable[[VisionTransformer], Any]


def _eps(vit: VisionTransformer) -> None:
    for module in vit.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 0.01


def _one_eps(vit: VisionTransformer) -> None:
    vit.blocks[1].norm2.eps = 0.3


def _act(vit: VisionTransformer) -> None:
    for block in vit.blocks:
        block.mlp.act = QuickGELU()


def _tanh(vit: VisionTransformer) -> None:
    vit.blocks[0].mlp.act = nn.GELU(approximate="tanh")
    vit.blocks[1].mlp.act = GELUTanh()


def _scale(vit: VisionTransformer) -> None:
    vit.blocks[2].attn.fused_attn, vit.blocks[2].attn.scale = False, 0.5  # timm's fused attention ignores its scale


def _two(vit: VisionTransformer) -> None:
    vit.norm.eps = 0.02
    vit.blocks[0].mlp.act = nn.ReLU()


RECORDED: list[tuple[Change, list[dict[str, Any]]]] = [
    (_eps, [{"set": "eps", "to": 0.01, "on": ["blocks.#.norm1", "blocks.#.norm2", "norm"]}]),
    (_one_eps, [{"set": "eps", "to": 0.3, "on": ["blocks.1.norm2"]}]),
    (_act, [{"set": "act", "to": "quick_gelu", "on": ["blocks.#.mlp.act"]}]),
    (_tanh, [{"set": "act", "to": "gelu_tanh", "on": ["blocks.0.mlp.act", "blocks.1.mlp.act"]}]),
    (_two, [{"set": "eps", "to": 0.02, "on": ["norm"]}, {"set": "act", "to": "relu", "on": ["blocks.0.mlp.act"]}]),
]


@pytest.mark.parametrize(("change", "recorded"), RECORDED)
def test_settings_that_no_argument_says_are_recorded(
    vit: VisionTransformer, images: Tensor, tmp_path: Path, change: Change, recorded: list[dict[str, Any]]
) -> None:
    before = vit(images)
    change(vit)
    out = save(vit, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["model_args"]["overrides"] == recorded
    with torch.no_grad():
        again = load(out)
        assert torch.equal(again(images), vit(images))
        assert not torch.equal(again(images), before)
    assert (save(again, tmp_path / "again") / "config.json").read_text() == (out / "config.json").read_text()


def test_a_loaded_model_that_is_changed_again_keeps_both(
    vit: VisionTransformer, images: Tensor, tmp_path: Path
) -> None:
    _two(vit)
    again = load(save(vit, tmp_path / "out"))
    _one_eps(again)
    with torch.no_grad():
        assert torch.equal(load(save(again, tmp_path / "again"))(images), again(images))


def test_nothing_is_recorded_where_nothing_differs(vit: VisionTransformer, tmp_path: Path) -> None:
    assert "overrides" not in json.loads((save(vit, tmp_path / "out") / "config.json").read_text())["model_args"]


class _Double(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.weight = inner.weight
        self.bias = inner.bias

    def forward(self, x: Tensor) -> Tensor:
        return 2 * nn.functional.linear(x, self.weight, self.bias)  # type: ignore[arg-type]


def _head(vit: VisionTransformer) -> None:
    vit.head = nn.Linear(vit.embed_dim, 7)


def _deep_head(vit: VisionTransformer) -> None:
    vit.head = nn.Sequential(nn.Linear(vit.embed_dim, 8), nn.ReLU(), nn.Linear(8, 10))


def _dropped(vit: VisionTransformer) -> None:
    vit.blocks = vit.blocks[:-1]


def _stem(vit: VisionTransformer) -> None:
    vit.patch_embed.proj = nn.Conv2d(4, vit.embed_dim, 16, 16)


def _buffer(vit: VisionTransformer) -> None:
    vit.register_buffer("steps", torch.tensor(7))


def _hook(vit: VisionTransformer) -> None:
    vit.blocks[0].mlp.register_forward_hook(lambda module, inputs, output: 2 * output)


def _same_weights(vit: VisionTransformer) -> None:
    vit.blocks[1].mlp.fc1 = _Double(vit.blocks[1].mlp.fc1)


def _pooled(vit: VisionTransformer) -> None:
    vit.global_pool = "avg"


def _plain_number(vit: VisionTransformer) -> None:
    vit.norm.eps = 1


def _method(vit: VisionTransformer) -> None:
    vit.forward_head = lambda x, pre_logits=False: vit.head(x.mean(1))


REFUSED: list[tuple[Change, type[Exception], str]] = [
    (_head, UsageError, r"Give its head 7 outputs with model\.reset_classifier\(7\)"),
    (_deep_head, UsageError, "Its head is a Sequential"),
    (_dropped, UsageError, r"blocks\.5.* arguments of timm\.create_model \(depth"),
    (_stem, UsageError, r"patch_embed\.proj\.weight: it \(64, 4, 16, 16\), timm \(64, 3, 16, 16\)"),
    (_buffer, UsageError, "unexpected in it .steps."),
    (_hook, VerificationError, r"blocks\.0\.mlp has hooks"),
    (_same_weights, VerificationError, r"blocks\.1\.mlp\.fc1 is a _Double, not a Linear"),
    (_pooled, UsageError, r"fc_norm.* arguments of timm\.create_model .*global_pool"),
    (_scale, VerificationError, r"blocks\.2\.attn has .*scale 0\.5 instead of 0\.17"),
    (_plain_number, VerificationError, "norm has eps 1 instead of 1e-06"),
    (_method, VerificationError, "a method that was replaced"),
]


@pytest.mark.parametrize(("change", "error", "message"), REFUSED)
def test_what_cannot_be_recorded_is_refused(
    vit: VisionTransformer, tmp_path: Path, change: Change, error: type[Exception], message: str
) -> None:
    change(vit)
    with pytest.raises(error, match=message):
        save(vit, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_saving_draws_no_random_numbers_and_leaves_modes(vit: VisionTransformer, tmp_path: Path) -> None:
    vit.train()
    vit.blocks[0].eval()
    state = torch.get_rng_state()
    save(vit, tmp_path / "out", dtype=torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), state)
    assert vit.training
    assert not vit.blocks[0].training


BAD: list[Any] = [
    {"set": "eps"},
    ["eps"],
    [{"set": "weight", "to": 1.0, "on": ["*"]}],
    [{"set": "eps", "to": float("nan"), "on": ["*"]}],
    [{"set": "eps", "to": True, "on": ["*"]}],
    [{"set": "act", "to": "os.system", "on": ["*"]}],
    [{"set": "eps", "to": 1e-5, "on": "norm"}],
]


@pytest.mark.parametrize("bad", BAD)
def test_damaged_overrides_are_one_clear_error(bad: Any) -> None:
    with pytest.raises(CheckpointError, match="override"):
        overrides_from_json(bad)


def test_an_override_of_nothing_is_refused(vit: VisionTransformer) -> None:
    with pytest.raises(CheckpointError, match=r"no module 'blocks\.#\.norm3'"):
        apply_overrides(vit, [Override("eps", 1e-5, ("blocks.#.norm3",))])


def test_overrides_found_are_those_applied(vit: VisionTransformer) -> None:
    other = perturb(timm.create_model("test_vit", pretrained=False, num_classes=10, img_size=64))
    given = (Override("eps", 0.5, ("blocks.#.norm1",)), Override("act", "silu", ("blocks.3.mlp.act",)))
    apply_overrides(vit, given)
    assert find_overrides(vit, other) == given
    assert overrides_from_json([override.to_json() for override in given]) == given


def test_outputs_are_compared_by_the_largest_of_all_of_them() -> None:
    nan, inf = float("nan"), float("inf")
    large, small, none = torch.tensor([-8.0, nan, 2.0]), torch.tensor([1.0, inf]), torch.empty(0)
    assert difference([large, small, none], [large + 0.5, small - 1, none]) == 1 / 8
    assert difference([none], [none]) == difference([], []) == 0
    assert difference([small], [small[:1]]) == difference([small], [torch.tensor([1.0, 0.0])]) == inf
    assert difference([torch.zeros(2)], [torch.tensor([0.0, 3.0])]) == 3
