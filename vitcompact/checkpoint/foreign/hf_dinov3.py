"""Hugging Face transformers: DINOv3 ViTs."""

from __future__ import annotations

from typing import Any

from vitcompact.checkpoint.foreign.config import Config
from vitcompact.checkpoint.foreign.described import Described, Layout, Size, Tensors
from vitcompact.checkpoint.foreign.names import fused, outputs, renamed
from vitcompact.checkpoint.foreign.plain import activation, eps, vit_args
from vitcompact.checkpoint.foreign.preprocessing import IMAGENET
from vitcompact.checkpoint.overrides import Override
from vitcompact.errors import CheckpointError

_RULES = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.mask_token", "-the mask token of pretraining"),
    (r"embeddings\.patch_embeddings\.(\w+)", r"patch_embed.proj.\1"),
    (r"layer\.(\d+)\.attention\.([qv])_proj\.bias", r"blocks.\1.attn.\2_bias"),
    (r"layer\.(\d+)\.attention\.([qkv])_proj\.(\w+)", r"blocks.\1.attn.\2.\3"),
    (r"layer\.(\d+)\.attention\.o_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.gamma_\2"),
    (r"layer\.(\d+)\.mlp\.gate_proj\.(\w+)", r"blocks.\1.mlp.fc1_g.\2"),
    (r"layer\.(\d+)\.mlp\.up_proj\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"layer\.(\d+)\.mlp\.down_proj\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"layer\.(\d+)\.norm([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
    (r"norm\.(\w+)", r"norm.\1"),
    (r"classifier\.(\w+)", r"head.\1"),
    (r"rope_embeddings\..+", "-constants of its position encoding"),
)


def _dinov3(config: Config, tensors: Tensors, size: Size) -> Described:
    found, left_out = renamed(tensors, _RULES, prefix=r"(?:dinov3_vit\.)?(?:model\.)?")
    if any(name.endswith("attn.k.bias") and bool(tensor.any()) for name, tensor in found.items()):
        raise CheckpointError(f"{config.where}: keys with a bias, which timm's DINOv3 does not have")
    gated = config.flag("use_gated_mlp", False)
    if gated:
        found = {name.replace("mlp.fc1.", "mlp.fc1_x."): tensor for name, tensor in found.items()}
    args: dict[str, Any] = {
        **vit_args(config),
        "qkv_bias": any(name.endswith("attn.q_bias") for name in found),
        "init_values": config.number("layerscale_value", 1.0),
        "rope_temperature": config.number("rope_theta", 100.0),
        "num_reg_tokens": config.integer("num_register_tokens", 0, least=0),
        "swiglu_mlp": gated,
        "swiglu_align_to": int(gated),  # not 0: its two first matrices are apart
        "global_pool": "token",
        "num_classes": outputs(found, "head"),
    }
    if size is not None:
        args["img_size"] = size
    if not args["num_reg_tokens"]:
        found.pop("reg_token", None)
    found = {name: tensor for name, tensor in found.items() if not name.endswith("attn.k.bias")}
    overrides = [eps(config, 1e-5)]
    if (act := activation(config)) != ("silu" if gated else "gelu"):
        overrides.append(Override("act", act, ("blocks.#.mlp.act",)))
    return Described(
        "vit_huge_plus_patch16_dinov3" if gated else "vit_base_patch16_dinov3",
        args,
        fused(found, ("q", "k", "v"), "qkv"),
        args["num_classes"],
        left_out=left_out,
        overrides=tuple(overrides),
        class_names=config.class_names(),
    )


LAYOUTS = (
    Layout(
        "Hugging Face DINOv3",
        ("dinov3_vit",),
        _dinov3,
        {**IMAGENET, "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"},
    ),
)
