"""Files of the original repositories, of other sizes and of other wrappings are read to the same bits.

Every case is a small model saved as others save it. What is read must have the same weights, the same classifier and
the same outputs; or be refused with the way out.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from vitcompact.checkpoint import SourceOptions, load_source
from vitcompact.errors import CheckpointError, UsageError

from . import layouts
from .helpers import perturb

VIT = {"embed_dim": 48, "depth": 2, "num_heads": 3}
SWIN = {"embed_dim": 12, "depths": (2, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
PVT = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2)}
Save = Callable[[Mapping[str, Tensor]], Mapping[str, Any]]
Case = tuple[str, dict[str, Any], dict[str, Any], Save]


def as_model(weights: Mapping[str, Tensor]) -> Mapping[str, Any]:
    return {"model": dict(weights)}


def behind(prefix: str) -> Save:
    return lambda weights: layouts.prefixed(weights, prefix)


def under(key: str) -> Save:
    return lambda weights: {key: dict(weights), "epoch": 1}


def swin(windows: int, window: int) -> Save:
    return lambda weights: as_model(layouts.swin(weights, windows, window))


def beside(weights: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """A backbone and a classifier as two parts of a module."""
    head = {name: tensor for name, tensor in weights.items() if name.startswith("head.")}
    return {**layouts.prefixed({name: weights[name] for name in weights if name not in head}, "backbone."), **head}


def ssl(weights: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """What DINO's training writes of its teacher."""
    head = layouts.prefixed(layouts.dino_head(48), "module.head.")
    return {"teacher": {**layouts.prefixed(weights, "module.backbone."), **head}, "epoch": 3}


CONVERTED: dict[str, Case] = {
    "Swin, 37 classes": (
        "swin_tiny_patch4_window7_224",
        SWIN,
        {"num_classes": 37},
        swin(64, 7),
    ),
    "Swin, one class": (
        "swin_tiny_patch4_window7_224",
        SWIN,
        {"num_classes": 1},
        swin(64, 7),
    ),
    "Swin V2": ("swinv2_tiny_window8_256", SWIN, {"num_classes": 10}, swin(64, 8)),
    "PVT v2, 10 classes": ("pvt_v2_b0", PVT, {"num_classes": 10}, layouts.pvt_v2),
    "BEiT, 37 classes": ("beit_base_patch16_224", VIT, {"num_classes": 37, "img_size": 64}, as_model),
    "BEiT, class token": (
        *("beit_base_patch16_224", VIT, {"num_classes": 1, "global_pool": "token"}),
        lambda w: {"module": dict(w)},
    ),
    "BEiT, one shared table": (
        *("beit_base_patch16_224", {**VIT, "use_shared_rel_pos_bias": True, "use_rel_pos_bias": False}),
        *({"num_classes": 3, "img_size": 64}, as_model),
    ),
    "DINO": ("vit_small_patch16_224", VIT, {"num_classes": 0}, ssl),
    "DINOv2": ("vit_small_patch14_dinov2", VIT, {"num_classes": 0, "img_size": 56}, layouts.dinov2),
    "DINOv2, registers, in chunks": (
        *("vit_small_patch14_reg4_dinov2", VIT, {"num_classes": 0, "img_size": 56}),
        lambda w: {"teacher": layouts.prefixed(layouts.dinov2(w, 2), "backbone.")},
    ),
    "MAE, pre-trained": (
        *("vit_base_patch16_224", VIT, {"num_classes": 0, "img_size": 64}),
        lambda w: as_model({**w, **layouts.mae_decoder(48)}),
    ),
    "MAE, fine-tuned": (
        *("vit_base_patch16_224", VIT, {"num_classes": 37, "global_pool": "avg", "img_size": 64}),
        lambda w: {"model": dict(w), "args": argparse.Namespace(model="vit_base_patch16", global_pool=True)},
    ),
    "EVA-02": ("eva02_tiny_patch14_224", VIT, {"num_classes": 10, "img_size": 56}, lambda w: {"module": dict(w)}),
    "OpenAI's CLIP": (
        *("vit_base_patch32_clip_quickgelu_224", VIT, {"num_classes": 16, "img_size": 64}, layouts.openai_clip),
    ),
    "OpenCLIP, timm's tower": (
        *("vit_base_patch16_224", VIT, {"num_classes": 0, "img_size": 64}),
        lambda w: {"state_dict": layouts.prefixed(w, "module.visual.trunk.")},
    ),
}
SHAPES: dict[str, Case] = {
    "patches of 8": ("vit_base_patch16_224", VIT, {"patch_size": 8, "img_size": 64}, as_model),
    "patches of 14": ("vit_base_patch16_224", VIT, {"patch_size": 14, "img_size": 56}, as_model),
    "another size": ("vit_base_patch16_224", VIT, {"img_size": 96, "num_classes": 10}, as_model),
    "one channel": ("vit_base_patch16_224", VIT, {"img_size": 64, "in_chans": 1}, as_model),
    "four channels": ("pvt_v2_b0", PVT, {"in_chans": 4, "num_classes": 3}, as_model),
    "windows of 8": (
        *("swin_tiny_patch4_window7_224", SWIN, {"window_size": 8, "img_size": 256, "num_classes": 3}, as_model),
    ),
    "windows of 6, original": (
        *("swin_tiny_patch4_window7_224", SWIN, {"window_size": 6, "img_size": 192, "num_classes": 3}),
        swin(64, 6),
    ),
    "a table of another grid": ("beit_base_patch16_224", VIT, {"img_size": 80, "num_classes": 3}, as_model),
    "registers and layer scale": (
        *(
            "vit_base_patch16_224",
            VIT,
            {"reg_tokens": 4, "init_values": 0.1, "img_size": 64, "num_classes": 3},
            as_model,
        ),
    ),
    "no class token": (
        *("vit_base_patch16_224", VIT, {"class_token": False, "global_pool": "avg", "img_size": 64}, as_model),
    ),
    "no bias, normalised queries": (
        *("vit_base_patch16_224", VIT, {"qkv_bias": False, "qk_norm": True, "img_size": 64}, as_model),
    ),
}
WRAPPED: dict[str, Case] = {
    prefix: ("vit_base_patch16_224", VIT, {"img_size": 64, "num_classes": 10}, behind(prefix))
    for prefix in ("model.", "net.encoder.", "base_model.model.", "module.0.", "_orig_mod.module.", "a.b.c.d.")
}
WRAPPED |= {
    key: (
        "vit_base_patch16_224",
        VIT,
        {"img_size": 64, "num_classes": 10},
        under(key),
    )
    for key in ("params", "model_state_dict", "ema", "anything at all")
}
WRAPPED |= {
    "Lightning": (
        *("vit_base_patch16_224", VIT, {"img_size": 64, "num_classes": 10}),
        lambda w: {
            "state_dict": {**layouts.prefixed(w, "model."), "criterion.weight": torch.ones(10)},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
            "hyper_parameters": {"lr": 0.1},
        },
    ),
    "a classifier beside it": ("vit_base_patch16_224", VIT, {"img_size": 64, "num_classes": 10}, beside),
    "a classifier without a bias": (
        *("vit_base_patch16_224", VIT, {"img_size": 64, "num_classes": 10}),
        lambda w: {"backbone": {name: tensor for name, tensor in w.items() if name != "head.bias"}},
    ),
    "optimizer": (
        *("vit_base_patch16_224", VIT, {"img_size": 64, "num_classes": 10}),
        lambda w: {"net": dict(w), "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "center": torch.zeros(3)},
    ),
}
ALL = {**CONVERTED, **SHAPES, **WRAPPED}


@pytest.mark.parametrize("case", ALL)
def test_is_read_to_the_bit(case: str, tmp_path: Path) -> None:
    name, small, kwargs, save = ALL[case]
    model = perturb(timm.create_model(name, **{**small, **kwargs}))
    if case in ("OpenAI's CLIP", "a classifier without a bias"):
        nn.init.zeros_(model.get_parameter("head.bias"))
    torch.save(save(model.state_dict()), tmp_path / "w.pth")
    loaded = load_source(str(tmp_path / "w.pth"), SourceOptions(model=name, model_kwargs=small)).model
    assert_equal(loaded, model)
    if size := kwargs.get("img_size"):
        images = torch.randn(1, kwargs.get("in_chans", 3), size, size)
        with torch.no_grad():
            assert torch.equal(loaded(images), model(images))


def assert_equal(loaded: nn.Module, model: nn.Module) -> None:
    weights, expected = loaded.state_dict(), model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert loaded.num_classes == model.num_classes


@pytest.fixture
def vit() -> nn.Module:
    return perturb(timm.create_model("vit_base_patch16_224", **VIT, img_size=64, num_classes=10))


def refusal(content: object, tmp_path: Path, error: type[Exception], **options: Any) -> str:
    torch.save(content, tmp_path / "w.pth")
    options = {"model": "vit_base_patch16_224", "model_kwargs": VIT, **options}
    with pytest.raises(error) as caught:
        load_source(str(tmp_path / "w.pth"), SourceOptions(**options))
    return str(caught.value)


def test_several_models_are_listed_and_chosen_by_key(vit: nn.Module, tmp_path: Path) -> None:
    weights = vit.state_dict()
    other = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    nested = {"student": layouts.prefixed(other, "backbone."), "teacher": layouts.prefixed(weights, "backbone.")}
    flat = {**layouts.prefixed(other, "base_encoder."), **layouts.prefixed(weights, "momentum_encoder.")}
    for content, key in ((nested, "teacher"), (nested, "teacher.backbone"), (flat, "momentum_encoder")):
        message = refusal(content, tmp_path, UsageError)
        assert "several models" in message
        assert f"`state_key='{key.partition('.')[0]}'`" in message
        options = SourceOptions(model="vit_base_patch16_224", model_kwargs=VIT, state_key=key)
        assert_equal(load_source(str(tmp_path / "w.pth"), options).model, vit)
    assert "no state dict 'tutor'" in refusal(nested, tmp_path, UsageError, state_key="tutor")


def test_what_is_left_out_is_named(vit: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = {**vit.state_dict(), **layouts.mae_decoder(48), "projector.0.weight": torch.ones(2, 2)}
    torch.save(content, tmp_path / "w.pth")
    load_source(str(tmp_path / "w.pth"), SourceOptions(model="vit_base_patch16_224", model_kwargs=VIT))
    for part in ("decoder_blocks (1 tensors)", "projector (1 tensors)", "decoder_pos_embed"):
        assert part in caplog.text


@pytest.mark.parametrize("part", ["dist_token", "blocks.2.norm1.weight", "norm_extra", "blocks.0.adapter.weight"])
def test_what_would_compute_something_else_is_refused(vit: nn.Module, tmp_path: Path, part: str) -> None:
    content = {**vit.state_dict(), part: torch.zeros(1, 48, 7, 7)}
    assert f"unexpected in the file ({part})" in refusal(content, tmp_path, CheckpointError)


def test_a_classifier_of_several_layers_is_refused(vit: nn.Module, tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in vit.state_dict().items() if not name.startswith("head.")}
    content = {**weights, "head.0.weight": torch.zeros(9, 48), "head.2.weight": torch.zeros(3, 9)}
    assert "`num_classes=0` takes the features" in refusal(content, tmp_path, CheckpointError)
    options = SourceOptions(model="vit_base_patch16_224", model_kwargs=VIT, num_classes=0)
    assert load_source(str(tmp_path / "w.pth"), options).model.num_classes == 0


def test_a_grid_that_its_length_does_not_tell(tmp_path: Path) -> None:
    model = perturb(timm.create_model("vit_base_patch16_224", **VIT, img_size=(32, 96), num_classes=3))
    assert "another shape (pos_embed" in refusal(model.state_dict(), tmp_path, CheckpointError)
    given: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
        ({"img_size": (32, 96)}, VIT),
        ({}, {**VIT, "img_size": (32, 96)}),
    )
    for recorded, kwargs in given:
        torch.save(
            {"model": model.state_dict(), "args": {"model": "vit_base_patch16_224", **recorded}}, tmp_path / "w.pth"
        )
        assert_equal(load_source(str(tmp_path / "w.pth"), SourceOptions(model_kwargs=kwargs)).model, model)


def test_what_is_resampled_or_replaced_is_said(
    vit: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(vit.state_dict(), tmp_path / "w.pth")
    base: dict[str, Any] = {"model": "vit_base_patch16_224", "model_kwargs": VIT}
    with caplog.at_level(logging.WARNING):
        load_source(str(tmp_path / "w.pth"), SourceOptions(**base))
        assert caplog.text == ""
        load_source(str(tmp_path / "w.pth"), SourceOptions(**base, img_size=96, num_classes=4, in_chans=1))
    assert "resampled as timm does, for other images than it was made for: pos_embed, patch_embed.proj" in caplog.text
    assert "its classifier of 10 classes is replaced by an untrained one of 4 classes" in caplog.text


@pytest.mark.parametrize("name", ["xcit_nano_12_p16_224", "levit_128s", "test_vit3"])
def test_architectures_of_other_kinds_keep_their_classifier(name: str, tmp_path: Path) -> None:
    small = {"depth": 2} if name.startswith("xcit") else {}
    model = perturb(timm.create_model(name, num_classes=7, **small))
    torch.save({"net": layouts.prefixed(model.state_dict(), "model.")}, tmp_path / "w.pth")
    options = SourceOptions(model=name, model_kwargs=small)
    assert_equal(load_source(str(tmp_path / "w.pth"), options).model, model)
