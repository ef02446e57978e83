"""Weights with something on them that no plain model has are refused by what it is; others are read."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torchvision.models.vision_transformer import VisionTransformer

from vitcompact.checkpoint import SourceOptions, load_source
from vitcompact.errors import CheckpointError, UsageError, VitCompactError

from . import layouts
from .helpers import perturb

Change = Callable[[nn.Module], Mapping[str, Tensor]]


def lora(model: nn.Module) -> Mapping[str, Tensor]:
    weights = model.state_dict()
    weights["blocks.0.attn.qkv.base_layer.weight"] = weights.pop("blocks.0.attn.qkv.weight")
    return {**weights, "blocks.0.attn.qkv.lora_A.default.weight": torch.zeros(2, 64)}


def saved_module(model: nn.Module) -> Mapping[str, Tensor]:
    weights = model.state_dict()
    return {**weights, "head.original_module.weight": weights.pop("head.weight")}


def pruned(model: nn.Module) -> Mapping[str, Tensor]:
    prune.l1_unstructured(model.get_submodule("blocks.0.mlp.fc1"), "weight", 0.3)
    return model.state_dict()


def parametrised(model: nn.Module) -> Mapping[str, Tensor]:
    nn.utils.parametrizations.weight_norm(model.get_submodule("head"))
    return model.state_dict()


def renamed(old: str, new: str) -> Change:
    return lambda model: {name.replace(old, new): tensor for name, tensor in model.state_dict().items()}


def added(name: str) -> Change:
    return lambda model: {**model.state_dict(), name: torch.ones(2)}


UNFINISHED: dict[str, tuple[Change, str]] = {
    "LoRA": (lora, r"base_layer.* has LoRA .*merge_and_unload"),
    "LoRA, a saved head": (saved_module, "LoRA .* merge them"),
    "DoRA": (added("blocks.0.attn.qkv.lora_magnitude_vector.default.weight"), "LoRA or other adapters"),
    "bitsandbytes, eight bits": (added("blocks.0.attn.qkv.SCB"), "quantised layers: give the checkpoint from before"),
    "bitsandbytes, four bits": (added("blocks.0.attn.qkv.weight.absmax"), "quantised layers"),
    "GPTQ": (added("blocks.0.attn.qkv.qweight"), "quantised layers"),
    "pruning masks": (pruned, r"pruning masks .*prune\.remove"),
    "parametrised": (parametrised, "remove_parametrizations"),
    "OpenMMLab": (renamed("blocks.0.mlp.fc1", "layers.0.ffn.layers.0.0"), "OpenMMLab.* or timm's"),
}


@pytest.mark.parametrize("kind", UNFINISHED)
def test_is_refused_by_what_it_is(kind: str, vit: nn.Module, tmp_path: Path) -> None:
    change, message = UNFINISHED[kind]
    torch.save({"model": change(vit)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=message):
        load_source(str(tmp_path / "w.pth"), SourceOptions(model="test_vit"))


def test_a_directory_of_adapters_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"adapter_config\.json\) has LoRA .* merge them"):
        load_source(str(tmp_path))


def test_a_quantised_directory_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    config = {"model_type": "vit", "quantization_config": {"quant_method": "bitsandbytes"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"quantised \(quantization_config\): give the checkpoint from before"):
        load_source(str(tmp_path))


BESIDE: dict[str, Callable[[Mapping[str, Tensor]], Mapping[str, Any]]] = {
    "an averaged model's counter": lambda w: {**layouts.prefixed(w, "module."), "n_averaged": torch.tensor(3)},
    "DINO's weight-normalised layer": lambda w: {
        "teacher": {**layouts.prefixed(w, "backbone."), **layouts.prefixed(layouts.dino_head(64), "head.")}
    },
    "a mask of biases": lambda w: {**w, "step": torch.tensor(1)},
    "MoCo v3, by a part of the key": lambda w: {
        "state_dict": {
            **layouts.prefixed(w, "module.momentum_encoder."),
            **layouts.prefixed({name: torch.zeros_like(tensor) for name, tensor in w.items()}, "module.base_encoder."),
        }
    },
    "a normalising layer": lambda w: {**layouts.prefixed(w, "model."), "normalize.mean": torch.zeros(1, 3, 1, 1)},
}


@pytest.mark.parametrize("kind", BESIDE)
def test_what_is_beside_the_weights_does_not_matter(kind: str, vit: nn.Module, tmp_path: Path) -> None:
    torch.save(BESIDE[kind](vit.state_dict()), tmp_path / "w.pth")
    key = "momentum_encoder" if "MoCo" in kind else None
    assert_same(tmp_path / "w.pth", vit, model="test_vit", state_key=key)


def assert_same(path: Path, wanted: nn.Module, **options: Any) -> None:
    loaded = load_source(str(path), SourceOptions(**options)).model
    weights = wanted.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())


def test_text_towers_and_decoders_that_a_conversion_drops_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    name = "vit_base_patch32_clip_quickgelu_224"
    model = perturb(timm.create_model(name, **small, num_classes=16, img_size=64))
    torch.save(layouts.openai_clip(model.state_dict()), tmp_path / "w.pth")
    load_source(str(tmp_path / "w.pth"), SourceOptions(model=name, model_kwargs=small))
    assert "left out" in caplog.text
    assert "token_embedding (1 tensors)" in caplog.text
    assert "visual" not in caplog.text


@pytest.mark.parametrize("size", [64, (64, 64), [64, 64]])
def test_sizes_among_the_arguments_are_one_number_or_two(size: object, vit: nn.Module, tmp_path: Path) -> None:
    torch.save(vit.state_dict(), tmp_path / "w.pth")
    assert_same(tmp_path / "w.pth", vit, model="test_vit", model_kwargs={"img_size": size})


def test_an_oblong_grid_says_how_its_size_is_given(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", img_size=(32, 96), num_classes=3)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"give it, such as `model_kwargs='img_size=\(160,80\)'`"):
        load_source(str(tmp_path / "w.pth"), SourceOptions(model="test_vit"))
    assert_same(tmp_path / "w.pth", model, model="test_vit", model_kwargs={"img_size": (32, 96)})


@pytest.mark.parametrize("prefix", ["", "model.", "module.net.", "backbone.vit."])
def test_torchvision_s_names_behind_a_prefix(prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    model = perturb(VisionTransformer(32, 16, 1, 12, 768, 64, num_classes=5))
    weights = {**layouts.prefixed(model.state_dict(), prefix), **({"loss.weight": torch.ones(5)} if prefix else {})}
    torch.save({"state_dict": weights}, tmp_path / "w.ckpt")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found, wanted = load_source(str(tmp_path / "w.ckpt")).model(images), model(images)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_messages_are_short(vit: nn.Module, tmp_path: Path) -> None:
    for kind, (change, _) in UNFINISHED.items():
        model = timm.create_model("test_vit", img_size=64, num_classes=10)
        torch.save({"model": change(model)}, tmp_path / "w.pth")
        with pytest.raises(VitCompactError) as caught:
            load_source(str(tmp_path / "w.pth"), SourceOptions(model="test_vit"))
        assert len(str(caught.value).replace(str(tmp_path), "")) < 300, kind
