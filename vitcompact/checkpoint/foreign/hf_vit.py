"""Hugging Face transformers: ViT and DeiT."""

from __future__ import annotations

from typing import Any

from vitcompact.checkpoint.foreign.config import Config
from vitcompact.checkpoint.foreign.described import Described, Layout, Size, Tensors
from vitcompact.checkpoint.foreign.names import fused, outputs, renamed
from vitcompact.checkpoint.foreign.plain import activation, eps, known_name, vit_args
from vitcompact.checkpoint.foreign.preprocessing import CROP_BICUBIC, HALVES, IMAGENET, SQUASH_BILINEAR

BLOCKS = (
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(\w+)", r"blocks.\1.attn.\2.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"blocks.\1.attn.proj.\2"),
)
FFN = (
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layer\.(\d+)\.output\.dense\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.layer\.(\d+)\.layernorm_before\.(\w+)", r"blocks.\1.norm1.\2"),
    (r"encoder\.layer\.(\d+)\.layernorm_after\.(\w+)", r"blocks.\1.norm2.\2"),
)
EMBEDDINGS = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r"embeddings\.mask_token", "-the mask token of pretraining"),
    (r"layernorm\.(\w+)", r"norm.\1"),
)
POOLER = (r"pooler\.dense\.(\w+)", "-the pooler, which no classifier of the library reads")
DECODER = (r"decoder\..+", "-the decoder of pretraining")
_RULES = (
    *(*BLOCKS, *FFN, *EMBEDDINGS, POOLER, DECODER),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"(?:cls_)?classifier\.(\w+)", r"head.\1"),
    (r"distillation_classifier\.(\w+)", r"head_dist.\1"),
)
QKV = ("query", "key", "value")


def _vit(config: Config, tensors: Tensors, size: Size) -> Described:
    found, left_out = renamed(tensors, _RULES, prefix=r"vit\.|deit\.")
    args: dict[str, Any] = {
        **vit_args(config),
        "qkv_bias": config.flag("qkv_bias", True),
        "act_layer": activation(config),
        "num_classes": outputs(found, "head"),
    }
    name = known_name(f"vit_{{size}}_patch{args['patch_size']}_224", args["embed_dim"], "vit_base_patch16_224")
    if "head_dist.weight" in found:  # both heads are averaged, as timm's distilled models do
        name = "deit_base_distilled_patch16_224"
    elif "dist_token" in found:  # a token that no head reads is a register
        found["reg_token"] = found.pop("dist_token")
        args["reg_tokens"] = 1
    elif config.text("model_type", "vit") == "deit":
        name = "deit_base_patch16_224"
    return Described(
        name,
        args,
        fused(found, QKV, "qkv"),
        args["num_classes"],
        left_out=left_out,
        overrides=(eps(config, 1e-6 if config.data.get("model_type") == "vit_msn" else 1e-12),),
        class_names=config.class_names(),
    )


LAYOUTS = (
    Layout("Hugging Face ViT", ("vit", "vit_mae", "vit_msn"), _vit, {**HALVES, **SQUASH_BILINEAR}),
    Layout("Hugging Face DeiT", ("deit",), _vit, {**IMAGENET, **CROP_BICUBIC, "crop_pct": 224 / 256}),
)
