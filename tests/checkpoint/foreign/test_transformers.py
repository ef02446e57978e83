"""Directories that Hugging Face transformers saved compute in timm what they compute there."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import vitcompact
from vitcompact.checkpoint import LoadedModel, SourceOptions, load_source
from vitcompact.errors import CheckpointError, UsageError

transformers = pytest.importorskip("transformers", reason="transformers is not installed (the extra `foreign`)")

SIZE = 32
VIT: dict[str, Any] = {
    **{"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96},
    **{"image_size": SIZE, "patch_size": 8},
}
TEXT = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 64}
LABELS = {"id2label": {0: "ant", 1: "bee", 2: "cat"}, "label2id": {"ant": 0, "bee": 1, "cat": 2}}


def _dino(**more: Any) -> dict[str, Any]:
    return {key: value for key, value in VIT.items() if key != "intermediate_size"} | {"mlp_ratio": 2} | more


def _towers(**more: Any) -> dict[str, Any]:
    return {"vision_config": dict(VIT, projection_dim=16), "text_config": dict(TEXT, projection_dim=16), **more}


def _siglip(**more: Any) -> dict[str, Any]:
    return {"vision_config": dict(VIT), "text_config": dict(TEXT), **more}


# Class, configuration, its arguments, and the output that the timm model gives.
MODELS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", {**VIT, **LABELS}, "logits"),
    "vit tanh": ("ViTForImageClassification", "ViTConfig", {**VIT, "hidden_act": "gelu_new"}, "logits"),
    "vit without bias": ("ViTForImageClassification", "ViTConfig", {**VIT, "qkv_bias": False}, "logits"),
    "vit features": ("ViTModel", "ViTConfig", {**VIT, "layer_norm_eps": 0.01}, "class token"),
    "vit, msn": ("ViTMSNForImageClassification", "ViTMSNConfig", {**VIT, **LABELS}, "logits"),
    "vit, mae": ("ViTMAEModel", "ViTMAEConfig", {**VIT, "mask_ratio": 0.0}, "class token"),
    "deit": ("DeiTForImageClassification", "DeiTConfig", {**VIT, **LABELS}, "logits"),
    "deit distilled": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", {**VIT, **LABELS}, "logits"),
    "dinov2": ("Dinov2Model", "Dinov2Config", _dino(layerscale_value=0.1), "pooler_output"),
    "dinov2 gated": ("Dinov2Model", "Dinov2Config", _dino(use_swiglu_ffn=True), "pooler_output"),
    "dinov2 registers": (
        *("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig"),
        *(_dino(num_register_tokens=2), "pooler_output"),
    ),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", {**VIT, "num_register_tokens": 4}, "pooler_output"),
    "dinov3 gated": (
        *("DINOv3ViTModel", "DINOv3ViTConfig"),
        *({**VIT, "use_gated_mlp": True, "hidden_act": "silu", "num_register_tokens": 4}, "pooler_output"),
    ),
    "beit": ("BeitForImageClassification", "BeitConfig", {**VIT, "use_relative_position_bias": True}, "logits"),
    "beit class token": (
        *("BeitForImageClassification", "BeitConfig"),
        *({**VIT, "use_mean_pooling": False, "use_absolute_position_embeddings": True}, "logits"),
    ),
    "beit shared": ("BeitModel", "BeitConfig", {**VIT, "use_shared_relative_position_bias": True}, "pooler_output"),
    "swin": (
        *("SwinForImageClassification", "SwinConfig"),
        *({"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": SIZE}, "logits"),
    ),
    "clip tower": ("CLIPVisionModel", "CLIPVisionConfig", VIT, "pooler_output"),
    "clip projected": (
        "CLIPVisionModelWithProjection",
        "CLIPVisionConfig",
        {**VIT, "projection_dim": 16},
        "image_embeds",
    ),
    "clip": ("CLIPModel", "CLIPConfig", _towers(projection_dim=16), "image features"),
    "clip classifier": ("CLIPForImageClassification", "CLIPConfig", _towers(**LABELS), "logits"),
    "siglip tower": ("SiglipVisionModel", "SiglipVisionConfig", VIT, "pooler_output"),
    "siglip": ("SiglipModel", "SiglipConfig", _siglip(), "image features"),
    "siglip classifier": ("SiglipForImageClassification", "SiglipConfig", _siglip(**LABELS), "logits"),
    "timm wrapper": (
        *("TimmWrapperForImageClassification", "TimmWrapperConfig"),
        *({"architecture": "test_vit", "model_args": {"img_size": SIZE}, **LABELS}, "logits"),
    ),
}


def saved(name: str, path: Path, **more: Any) -> Any:
    """A random model of the table in evaluation mode, saved to `path`."""
    kind, config, args, _ = MODELS[name]
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model = getattr(transformers, kind)(getattr(transformers, config)(**{**args, **more})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(path)
    return model


@torch.no_grad()
def expected(name: str, model: Any, images: Tensor) -> Tensor:
    output = MODELS[name][3]
    if output == "image features":
        features = model.get_image_features(images)
        found = getattr(features, "pooler_output", features)
    elif output == "class token":
        found = model(pixel_values=images).last_hidden_state[:, 0]
    else:
        found = model(pixel_values=images)[output]
    assert isinstance(found, Tensor)
    return found


def assert_same(model: nn.Module, images: Tensor, wanted: Tensor) -> None:
    with torch.no_grad():
        difference = (model(images) - wanted).abs().max() / wanted.abs().max()
    assert float(difference) < 1e-5


def preparation_of(loaded: LoadedModel, *keys: str) -> tuple[Any, ...]:
    cfg: Any = loaded.model.pretrained_cfg
    return tuple(cfg.get(key) for key in keys)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_the_library(name: str, tmp_path: Path) -> None:
    model = saved(name, tmp_path / "theirs")
    images = torch.randn(2, 3, SIZE, SIZE)
    wanted = expected(name, model, images)
    loaded = load_source(str(tmp_path / "theirs"))
    assert_same(loaded.model, images, wanted)
    labels = ["ant", "bee", "cat"] if "id2label" in MODELS[name][2] else None
    assert preparation_of(loaded, "input_size", "label_names") == ((3, SIZE, SIZE), labels)
    again = vitcompact.load(vitcompact.save(loaded.model, tmp_path / "ours"))
    assert_same(again, images, wanted)


@pytest.mark.parametrize("name", ["vit", "dinov2 gated", "dinov3", "beit", "swin", "clip projected", "timm wrapper"])
def test_the_whole_way_through(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path / "theirs")
    images = torch.randn(8, 3, SIZE, SIZE)
    original = load_source(str(tmp_path / "theirs")).model
    compact = vitcompact.convert(original, images=images, ratio=0.5, rank_ratio=0.25)
    folded = vitcompact.fold(compact)
    again = vitcompact.load(vitcompact.save(folded, tmp_path / "ours"))
    assert vitcompact.results(again).plan.layers
    with torch.no_grad():
        assert torch.equal(again(images), folded(images))
        assert not torch.equal(again(images), original(images))


PROCESSORS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"size": {"height": SIZE, "width": SIZE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2},
        {"crop_pct": 1.0, "crop_mode": "squash", "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear"},
    ),
    (
        {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
        {"crop_pct": 0.8, "crop_mode": "center"},
    ),
    ({"size": 40, "do_center_crop": True, "crop_size": 32, "resample": 3}, {"crop_pct": 0.8, "crop_mode": "center"}),
    (
        {"size": 40, "crop_size": 32, "image_processor_type": "DeiTImageProcessor"},
        {"crop_pct": 0.8, "crop_mode": "squash"},
    ),
    ({"size": SIZE, "do_normalize": False}, {"mean": (0.0,) * 3, "std": (1.0,) * 3, "crop_mode": "squash"}),
    ({"do_resize": False, "resample": 1}, {"interpolation": "lanczos", "crop_pct": 1.0}),
]


@pytest.fixture(scope="module")
def vit_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vit")
    saved("vit", path)
    return path


@pytest.mark.parametrize(("processor", "prepared"), PROCESSORS)
def test_preparation_is_that_of_the_processor(
    vit_dir: Path, processor: dict[str, Any], prepared: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    (vit_dir / "preprocessor_config.json").write_text(json.dumps(processor))
    loaded = load_source(str(vit_dir))
    (vit_dir / "preprocessor_config.json").unlink()
    assert preparation_of(loaded, *prepared) == tuple(prepared.values())
    assert "prepared" not in caplog.text


def test_without_a_processor_the_usual_way_is_taken_and_said(vit_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = load_source(str(vit_dir))
    assert preparation_of(loaded, "mean", "interpolation") == ((0.5, 0.5, 0.5), "bilinear")
    assert "does not say how images are prepared: Hugging Face ViT's usual way" in caplog.text


@pytest.mark.parametrize("name", ["dinov2", "dinov2 registers"])
def test_positions_are_resampled_to_the_processor_s_images_as_there(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = saved(name, tmp_path, image_size=56)
    images = torch.randn(2, 3, SIZE, SIZE)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 40}, "crop_size": SIZE}))
    loaded = load_source(str(tmp_path))
    assert_same(loaded.model, images, expected(name, model, images))
    assert "resampled from 7 x 7 to 4 x 4" in caplog.text
    large = load_source(str(tmp_path), SourceOptions(img_size=56)).model
    assert_same(large, torch.ones(1, 3, 56, 56), expected(name, model, torch.ones(1, 3, 56, 56)))


def test_a_head_that_timm_does_not_have_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = transformers.Dinov2Config(**_dino())
    transformers.Dinov2ForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"class token and the mean of the patches .* `num_classes=0`"):
        load_source(str(tmp_path))
    assert load_source(str(tmp_path), SourceOptions(num_classes=0)).model.num_classes == 0
    assert "read without its classifier" in caplog.text


def test_load_reads_them_too(vit_dir: Path) -> None:
    images = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(vitcompact.load(vit_dir)(images), load_source(str(vit_dir)).model(images))
        other = vitcompact.load(vit_dir, num_classes=7, img_size=64, drop_rate=0.5)
        assert other(torch.ones(1, 3, 64, 64)).shape == (1, 7)
    with pytest.raises(UsageError, match=r"Hugging Face ViT. has no features_only"):
        vitcompact.load(vit_dir, features_only=True)


def test_what_was_asked_for_beats_the_configuration(vit_dir: Path) -> None:
    model = load_source(str(vit_dir), SourceOptions(num_classes=7, img_size=64)).model
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    model = load_source(str(vit_dir), SourceOptions(in_chans=1, model_kwargs={"drop_rate": 0.5})).model
    assert model(torch.randn(1, 1, SIZE, SIZE)).shape == (1, 3)
    assert model.get_submodule("head_drop").p == 0.5


def test_weights_in_several_files(vit_dir: Path, tmp_path: Path) -> None:
    model = transformers.ViTForImageClassification.from_pretrained(vit_dir).eval()
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    images = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(load_source(str(tmp_path)).model(images), model(images).logits)


CHANGES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda config: config.update(model_type="convnext"), "of the type 'convnext' .*; read are: ViT, DeiT, DINOv2"),
    (lambda config: config.update(hidden_size="48"), "hidden_size is '48'"),
    (lambda config: config.update(num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    (lambda config: config.update(hidden_size=96000, num_attention_heads=1), "asks for .* weights"),
    (lambda config: config.update(num_hidden_layers=1), r"unexpected in the file \(blocks\.1"),
    (lambda config: config.update(hidden_act="os.system"), "hidden_act is 'os.system', expected one of"),
    (lambda config: config.update(layer_norm_eps=-1), "layer_norm_eps is -1"),
    (lambda config: config.update(num_attention_heads=5), "describes no model that timm can build"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_configuration_that_is_not_the_weights_is_one_clear_error(
    vit_dir: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    config = json.loads((vit_dir / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(vit_dir / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_source(str(tmp_path))


def test_a_folded_model_runs_in_the_library_s_wrapper(tmp_path: Path) -> None:
    """As docs/checkpoints.md has it: `TimmWrapper` takes the directory as it is."""
    model = timm.create_model("test_vit", img_size=SIZE, num_classes=3).eval()
    folded = vitcompact.fold(vitcompact.convert(model, ratio=0.5, rank_ratio=0.5))
    wrapped = transformers.AutoModelForImageClassification.from_pretrained(vitcompact.save(folded, tmp_path / "out"))
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(wrapped.eval()(pixel_values=images).logits, folded(images))
