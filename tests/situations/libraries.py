"""E. Directories and files of other libraries compute in timm what they compute there."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from torchvision.models.vision_transformer import VisionTransformer

import vitcompact

from .place import Place, close, noise, shaken, situation

SMALL: dict[str, Any] = {
    **{"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96},
    **{"image_size": 32, "patch_size": 8},
}
LABELS: dict[str, Any] = {"id2label": {0: "ant", 1: "bee", 2: "cat"}, "label2id": {"ant": 0, "bee": 1, "cat": 2}}
DINO: dict[str, Any] = {name: value for name, value in SMALL.items() if name != "intermediate_size"}
TEXT: dict[str, Any] = {**{name: SMALL[name] for name in list(SMALL)[:4]}, "vocab_size": 64}


def hugging(kind: str, config: str, args: dict[str, Any], place: Place, **save: Any) -> Any:
    """A random model of transformers, saved to `theirs`."""
    library = pytest.importorskip("transformers")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if not hasattr(library, kind):
        pytest.skip(f"this transformers has no {kind}")
    model = shaken(getattr(library, kind)(getattr(library, config)(**args)), 0.1)
    model.save_pretrained(str(place / "theirs"), **save)
    return model


def logits(model: Any) -> Callable[[Tensor], Any]:
    return lambda images: model(pixel_values=images).logits


def pooled(model: Any) -> Callable[[Tensor], Any]:
    return lambda images: model(pixel_values=images).pooler_output


def both_ways(place: Place, theirs: Callable[[Tensor], Any], images: Tensor, **options: Any) -> None:
    """As loaded, and as saved by us and loaded again."""
    loaded = place.same(place / "theirs", theirs, images, **options)
    close(vitcompact.load(vitcompact.save(loaded, place / "ours")), theirs, images)


@situation("E", "transformers: ViT with a preprocessor and class names, fp16 file")
def _(place: Place) -> None:
    model = hugging("ViTForImageClassification", "ViTConfig", {**SMALL, **LABELS}, place)
    (place / "theirs/preprocessor_config.json").write_text(
        json.dumps({"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    both_ways(place, logits(model), noise(32))
    cfg: Any = place.load(place / "theirs").model.pretrained_cfg
    assert list(cfg["label_names"]) == ["ant", "bee", "cat"]


@situation("E", "transformers: what `Trainer` leaves in a checkpoint folder")
def _(place: Place) -> None:
    model = hugging("ViTForImageClassification", "ViTConfig", {**SMALL, **LABELS}, place)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"state": {}}, place / "theirs" / name)
    (place / "theirs/trainer_state.json").write_text("{}")
    both_ways(place, logits(model), noise(32))


@situation("E", "transformers: DeiT, distilled")
def _(place: Place) -> None:
    model = hugging("DeiTForImageClassificationWithTeacher", "DeiTConfig", {**SMALL, **LABELS}, place)
    both_ways(place, logits(model), noise(32))


@situation("E", "transformers: DINOv2 with a classification head, which timm does not have")
def _(place: Place) -> None:
    hugging("Dinov2ForImageClassification", "Dinov2Config", {**DINO, **LABELS, "mlp_ratio": 2}, place)
    place.refused(place / "theirs", "class token and the mean of the patches", "num_classes=0")
    assert place.load(place / "theirs", num_classes=0).model.num_classes == 0


@situation("E", "transformers: DINOv2 with registers, and with a classification head")
def _(place: Place) -> None:
    args = {**DINO, "mlp_ratio": 2, "num_register_tokens": 3}
    model = hugging("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", args, place)
    both_ways(place, pooled(model), noise(32))
    hugging("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", {**args, **LABELS}, place)
    place.refused(place / "theirs", "num_classes=0")


@situation("E", "transformers: DINOv3")
def _(place: Place) -> None:
    model = hugging("DINOv3ViTModel", "DINOv3ViTConfig", {**SMALL, "num_register_tokens": 4}, place)
    both_ways(place, pooled(model), noise(32))


@situation("E", "transformers: DINOv3 with a classification head")
def _(place: Place) -> None:
    args = {**SMALL, "num_register_tokens": 4, **LABELS}
    hugging("DINOv3ViTForImageClassification", "DINOv3ViTConfig", args, place)
    place.refused(place / "theirs", "num_classes=0")
    assert place.load(place / "theirs", num_classes=0).model.num_classes == 0


@situation("E", "transformers: BEiT, with relative positions in each block")
def _(place: Place) -> None:
    args = {**SMALL, **LABELS, "use_relative_position_bias": True, "layer_scale_init_value": 0.1}
    model = hugging("BeitForImageClassification", "BeitConfig", args, place)
    both_ways(place, logits(model), noise(32))


@situation("E", "transformers: Swin, 3 classes")
def _(place: Place) -> None:
    args = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 32, **LABELS}
    model = hugging("SwinForImageClassification", "SwinConfig", args, place)
    both_ways(place, logits(model), noise(32))


@situation("E", "transformers: Swin V2, whose layout is named")
def _(place: Place) -> None:
    args = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 32, **LABELS}
    hugging("Swinv2ForImageClassification", "Swinv2Config", args, place)
    place.refused(place / "theirs", "swinv2", "read are")


@situation("E", "transformers: CLIP, both towers, sharded")
def _(place: Place) -> None:
    args = {
        "vision_config": {**SMALL, "projection_dim": 16},
        "text_config": {**TEXT, "projection_dim": 16},
        "projection_dim": 16,
    }
    model = hugging("CLIPModel", "CLIPConfig", args, place, max_shard_size="40KB")

    def theirs(images: Tensor) -> Any:
        found = model.get_image_features(images)
        return getattr(found, "pooler_output", found)

    both_ways(place, theirs, noise(32))


@situation("E", "transformers: SigLIP's vision tower")
def _(place: Place) -> None:
    model = hugging("SiglipVisionModel", "SiglipVisionConfig", SMALL, place)
    both_ways(place, pooled(model), noise(32))


@situation("E", "transformers: a TimmWrapper classifier")
def _(place: Place) -> None:
    args = {"architecture": "test_vit", "model_args": {"img_size": 32}, **LABELS}
    model = hugging("TimmWrapperForImageClassification", "TimmWrapperConfig", args, place)
    both_ways(place, logits(model), noise(32))


@situation("E", "transformers: a quantised model")
def _(place: Place) -> None:
    hugging("ViTForImageClassification", "ViTConfig", {**SMALL, **LABELS}, place)
    path = place / "theirs/config.json"
    config = json.loads(path.read_text())
    path.write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}})
    )
    place.refused(place / "theirs", "quantised", "from before")


@situation("E", "torchvision: vit_b_16 with one class")
def _(place: Place) -> None:
    model = shaken(VisionTransformer(32, 16, 1, 12, 768, 64, num_classes=1))
    place.same(place.save(model.state_dict(), "vit_b_16.pth"), model, noise(32))


@situation("E", "torchvision: vit_b_16 inside a Lightning module")
def _(place: Place) -> None:
    model = shaken(VisionTransformer(32, 16, 1, 12, 768, 64, num_classes=5))
    content = {"state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()}, "epoch": 1}
    place.same(place.save(content, "last.ckpt"), model, noise(32))


@situation("E", "torchvision: swin_t and swin_v2_t")
def _(place: Place) -> None:
    for name, more in (
        ("swin", {}),
        ("swin_v2", {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}),
    ):
        model = shaken(SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=7, **more), 0.05)
        place.same(place.save(model.state_dict(), f"{name}.pth"), model, noise(128))


def clip(place: Place, vision: dict[str, Any], **more: Any) -> Any:
    """A random model of open_clip, and its directory as the library pushes it."""
    library = pytest.importorskip("open_clip")
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    model = shaken(library.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text, **more))
    config = {"model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, **more}, "preprocess_cfg": {}}
    (place / "theirs").mkdir()
    (place / "theirs/open_clip_config.json").write_text(json.dumps(config))
    torch.save(model.state_dict(), place / "theirs/open_clip_pytorch_model.bin")
    return model


@situation("E", "open_clip: its own tower with QuickGELU")
def _(place: Place) -> None:
    model = clip(
        place, {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}, quick_gelu=True
    )
    both_ways(place, model.encode_image, noise(32))


@situation("E", "open_clip: a tower of timm's with a projection")
def _(place: Place) -> None:
    model = clip(
        place,
        {
            "image_size": 160,
            "timm_model_name": "test_vit",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
        },
    )
    both_ways(place, model.encode_image, noise(160))
