"""Hugging Face transformers: DINOv2, with and without registers."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from vitcompact.checkpoint.foreign.config import Config
from vitcompact.checkpoint.foreign.described import Described, Layout, Size, Tensors
from vitcompact.checkpoint.foreign.hf_vit import BLOCKS, EMBEDDINGS, QKV
from vitcompact.checkpoint.foreign.names import fused, outputs, renamed
from vitcompact.checkpoint.foreign.plain import activation, eps, ratio_of, vit_args
from vitcompact.checkpoint.foreign.preprocessing import CROP_BICUBIC, IMAGENET

_RULES = (
    *(*BLOCKS, *EMBEDDINGS),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.mlp\.(?:fc1|weights_in)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layer\.(\d+)\.mlp\.(?:fc2|weights_out)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.layer\.(\d+)\.norm([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
    (r"classifier\.(\w+)", r"head.\1"),
)
_LOST_HEAD = "its classifier reads the class token and the mean of the patches side by side, which no head of timm does"


def _dinov2(config: Config, tensors: Tensors, size: Size) -> Described:
    found, left_out = renamed(tensors, _RULES, prefix=r"dinov2(?:_with_registers)?\.")
    num_classes = outputs(found, "head")
    found = fused({name: tensor for name, tensor in found.items() if not name.startswith("head.")}, QKV, "qkv")
    gated = config.flag("use_swiglu_ffn", False)
    registers = config.integer("num_register_tokens", 4, least=0) if "reg_token" in found else 0
    args: dict[str, Any] = {
        **vit_args(config),
        "qkv_bias": config.flag("qkv_bias", True),
        "init_values": config.number("layerscale_value", 1.0),
        "reg_tokens": registers,
        "no_embed_class": True,
        "act_layer": "silu" if gated else activation(config),
        "num_classes": 0,
    }
    width = args["embed_dim"]
    # The library's gated FFN is two thirds as wide, in multiples of 8; timm counts both halves of the first matrix.
    hidden = int(width * config.integer("mlp_ratio", 4))
    args["mlp_ratio"] = ratio_of(2 * ((int(hidden * 2 / 3) + 7) // 8 * 8) if gated else hidden, width)
    found["cls_token"] = found["cls_token"] + found["pos_embed"][:, :1]
    found["pos_embed"] = found["pos_embed"][:, 1:]
    resampled = _fit(found, args, size, antialias=bool(registers))
    kind = "giant" if gated else "base"
    return Described(
        f"vit_{kind}_patch14_reg4_dinov2" if registers else f"vit_{kind}_patch14_dinov2",
        args,
        found,
        0,
        left_out=left_out,
        overrides=(eps(config, 1e-6),),
        resampled=resampled,
        lost_head=_LOST_HEAD if num_classes else None,
        class_names=config.class_names() if num_classes else (),
    )


def _fit(found: Tensors, args: dict[str, Any], size: Size, *, antialias: bool) -> str | None:
    """Fit the position embedding to images of `size` by the library's own resampling; says what was done."""
    patch, (height, width) = args["patch_size"], args["img_size"]
    if size is None or size == args["img_size"] or min(size) < patch:
        return None
    before, after = (height // patch, width // patch), (size[0] // patch, size[1] // patch)
    args["img_size"] = (after[0] * patch, after[1] * patch)
    table = found["pos_embed"].reshape(1, *before, -1).permute(0, 3, 1, 2)
    table = F.interpolate(table.float(), size=after, mode="bicubic", align_corners=False, antialias=antialias)
    found["pos_embed"] = table.permute(0, 2, 3, 1).flatten(1, 2).to(found["pos_embed"].dtype)
    return (
        f"position embedding resampled from {before[0]} x {before[1]} to {after[0]} x {after[1]}, as the library does"
    )


LAYOUTS = (
    Layout(
        "Hugging Face DINOv2",
        ("dinov2", "dinov2_with_registers"),
        _dinov2,
        {**IMAGENET, **CROP_BICUBIC, "crop_pct": 224 / 256},
    ),
)
