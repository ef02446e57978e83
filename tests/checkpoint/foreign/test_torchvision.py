"""Weights files of torchvision compute in timm what they compute there; timm requires torchvision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from torchvision.models.vision_transformer import VisionTransformer

import vitcompact
from vitcompact.checkpoint import SourceOptions, load_source
from vitcompact.checkpoint.foreign import torchvision_model
from vitcompact.errors import CheckpointError

from ..helpers import perturb

STAGES: dict[str, Any] = {"patch_size": [4, 4], "depths": [2, 2], "stochastic_depth_prob": 0.0, "num_classes": 5}
SECOND: dict[str, Any] = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
MODELS: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, int, int]]] = {
    "vit": (lambda: VisionTransformer(64, 16, 1, 12, 768, 64, num_classes=5), "vit_base_patch16_224", (3, 64, 64)),
    "vit, other patch": (
        lambda: VisionTransformer(64, 32, 1, 16, 1280, 32, num_classes=2),
        *("vit_base_patch16_224", (3, 64, 64)),
    ),
    "swin": (
        lambda: SwinTransformer(embed_dim=24, num_heads=[2, 4], window_size=[3, 3], **STAGES),
        *("swin_tiny_patch4_window7_224", (3, 96, 96)),
    ),
    "swin, deep": (
        lambda: SwinTransformer(
            embed_dim=96, num_heads=[3, 6], window_size=[2, 2], **{**STAGES, "depths": [2, 12], "num_classes": 1}
        ),
        *("swin_small_patch4_window7_224", (3, 64, 64)),
    ),
    "swin v2": (
        lambda: SwinTransformer(embed_dim=24, num_heads=[2, 4], window_size=[4, 4], **STAGES, **SECOND),
        *("swinv2_tiny_window8_256", (3, 128, 128)),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_the_library(name: str, tmp_path: Path) -> None:
    build, architecture, size = MODELS[name]
    theirs = perturb(build())
    torch.save({"model": theirs.state_dict()}, tmp_path / "theirs.pth")
    loaded = load_source(str(tmp_path / "theirs.pth"))
    assert loaded.provenance.architecture == architecture
    images = torch.randn(2, *size)
    assert_same(loaded.model, theirs, images)
    again = vitcompact.load(vitcompact.save(loaded.model, tmp_path / "ours"))
    assert_same(again, theirs, images)


def assert_same(model: nn.Module, theirs: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        wanted = theirs(images)
        assert float((model(images) - wanted).abs().max() / wanted.abs().max()) < 1e-5


def test_preparation_is_that_of_the_published_weights(tmp_path: Path) -> None:
    cfg: Any = _loaded("swin", tmp_path).model.pretrained_cfg
    assert (cfg["interpolation"], cfg["mean"], cfg["std"]) == ("bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert not cfg.get("hf_hub_id")


def test_options_count(tmp_path: Path) -> None:
    model = _loaded("vit", tmp_path, model="deit_base_patch16_224", num_classes=3, img_size=32).model
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)


def test_the_whole_way_through(tmp_path: Path) -> None:
    original = _loaded("swin", tmp_path).model
    images = torch.randn(4, 3, 96, 96)
    folded = vitcompact.fold(vitcompact.convert(original, images=images, rank_ratio=0.25))
    with torch.no_grad():
        assert torch.equal(vitcompact.load(vitcompact.save(folded, tmp_path / "ours"))(images), folded(images))


def _loaded(name: str, path: Path, **options: Any) -> Any:
    save_file(perturb(MODELS[name][0]()).state_dict(), path / "w.safetensors")
    return load_source(str(path / "w.safetensors"), SourceOptions(**options))


@pytest.mark.parametrize(
    ("drop", "add", "message"),
    [
        ("class_token", None, "missing from the file .cls_token"),
        ("encoder.ln.weight", None, "missing from the file .norm.weight"),
        (None, "text.weight", "no place in this layout .text.weight"),
        ("encoder.layers.encoder_layer_0.mlp.0.weight", None, "damaged or changed"),
        ("encoder.layers.encoder_layer_0.self_attention.in_proj_weight", None, "missing from the file"),
    ],
)
def test_damaged_weights_are_one_clear_error(drop: str | None, add: str | None, message: str, tmp_path: Path) -> None:
    tensors = MODELS["vit"][0]().state_dict()
    if drop:
        del tensors[drop]
    if add:
        tensors[add] = torch.zeros(1)
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_source(str(tmp_path / "w.safetensors"))


def test_a_width_that_does_not_tell_the_heads_is_refused() -> None:
    with pytest.raises(CheckpointError, match="width 48"):
        torchvision_model(VisionTransformer(32, 16, 1, 3, 48, 96).state_dict())


def test_other_weights_are_none_of_torchvision_s() -> None:
    assert torchvision_model({"features.0.0.weight": torch.zeros(1), "classifier.weight": torch.zeros(1)}) is None
