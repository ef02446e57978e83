"""Hugging Face transformers: the vision towers of CLIP and SigLIP, alone or beside their text towers."""

from __future__ import annotations

from typing import Any

import torch

from vitcompact.checkpoint.foreign.config import Config
from vitcompact.checkpoint.foreign.described import Described, Layout, Size, Tensors
from vitcompact.checkpoint.foreign.names import fused, outputs, renamed
from vitcompact.checkpoint.foreign.plain import activation, eps, known_name, vit_args
from vitcompact.checkpoint.foreign.preprocessing import CLIP, CROP_BICUBIC, HALVES

_LAYER = r"encoder\.layers\.(\d+)\."
_RULES = (
    (r"embeddings\.class_embedding", "cls_token"),
    (r"embeddings\.patch_embedding\.(\w+)", r"patch_embed.proj.\1"),
    (r"embeddings\.position_embedding\.weight", "pos_embed"),
    (r"embeddings\.position_ids", "-index tables"),
    (r"pre_layrnorm\.(\w+)", r"norm_pre.\1"),
    (r"post_layernorm\.(\w+)", r"norm.\1"),
    (_LAYER + r"layer_norm([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
    (_LAYER + r"self_attn\.([qkv])_proj\.(\w+)", r"blocks.\1.attn.\2.\3"),
    (_LAYER + r"self_attn\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (_LAYER + r"mlp\.(fc[12])\.(\w+)", r"blocks.\1.mlp.\2.\3"),
    (r"head\.probe", "attn_pool.latent"),
    (r"head\.attention\.in_proj_(weight|bias)", r"attn_pool.in_proj.\1"),
    (r"head\.attention\.out_proj\.(\w+)", r"attn_pool.proj.\1"),
    (r"head\.layernorm\.(\w+)", r"attn_pool.norm.\1"),
    (r"head\.mlp\.(fc[12])\.(\w+)", r"attn_pool.mlp.\1.\2"),
    (r"visual_projection\.weight", "head.weight"),
    (r"classifier\.(\w+)", r"head.\1"),
    (r"text_(?:model|projection)\..+|logit_(?:scale|bias)", "-the text tower"),
)
_PREFIX = r"(?:model\.)?vision_model\."


def _tower(config: Config, tensors: Tensors) -> tuple[Config, Tensors, dict[str, tuple[str, ...]]]:
    """The tower's own configuration, its tensors renamed, and what was left out."""
    section = config.section("vision_config") if "vision_config" in config.data else config
    found, left_out = renamed(tensors, _RULES, prefix=_PREFIX)
    if "cls_token" in found:
        found["cls_token"] = found["cls_token"].reshape(1, 1, -1)
    found["pos_embed"] = found["pos_embed"].unsqueeze(0)
    return section, fused(found, ("q", "k", "v"), "qkv"), left_out


def _clip(config: Config, tensors: Tensors, size: Size) -> Described:
    section, found, left_out = _tower(config, tensors)
    if (
        "head.weight" in found and "head.bias" not in found
    ):  # the projection into the space that images share with texts
        found["head.bias"] = torch.zeros(found["head.weight"].shape[0], dtype=found["head.weight"].dtype)
    averaged = "CLIPForImageClassification" in config.names("architectures")
    args: dict[str, Any] = {
        **vit_args(section, patch=32),
        "pre_norm": True,
        "act_layer": activation(section, "quick_gelu"),
        "num_classes": outputs(found, "head"),
    }
    if averaged:
        args.update(global_pool="avg", final_norm=False)
        unused = tuple(name for name in found if name.startswith("norm."))
        found = {name: tensor for name, tensor in found.items() if name not in unused}
        left_out["the last norm, which its classifier does not read"] = unused
    name = f"vit_{{size}}_patch{args['patch_size']}_clip_{args['img_size'][0]}"
    return Described(
        known_name(name, args["embed_dim"], "vit_base_patch32_clip_224"),
        args,
        found,
        args["num_classes"],
        left_out=left_out,
        overrides=(eps(section, 1e-5),),
        class_names=config.class_names(),
    )


def _siglip(config: Config, tensors: Tensors, size: Size) -> Described:
    section, found, left_out = _tower(config, tensors)
    num_classes = outputs(found, "head")
    pools = "attn_pool.latent" in found and not num_classes  # its classifier takes the mean of the patches instead
    if not pools:
        unused = tuple(name for name in found if name.startswith("attn_pool."))
        found = {name: tensor for name, tensor in found.items() if name not in unused}
        left_out = {
            **left_out,
            **({"the attention pooling, which its classifier does not read": unused} if unused else {}),
        }
    else:
        for kind in ("weight", "bias"):
            query, key, value = found.pop(f"attn_pool.in_proj.{kind}").chunk(3)
            found[f"attn_pool.q.{kind}"], found[f"attn_pool.kv.{kind}"] = query, torch.cat([key, value])
    args: dict[str, Any] = {
        **vit_args(section),
        "class_token": False,
        "global_pool": "map" if pools else "avg",
        "fc_norm": False,
        "act_layer": activation(section, "gelu_pytorch_tanh"),
        "num_classes": num_classes,
    }
    name = f"vit_{{size}}_patch{args['patch_size']}_siglip_{args['img_size'][0]}"
    return Described(
        known_name(name, args["embed_dim"], "vit_base_patch16_siglip_224"),
        args,
        found,
        num_classes,
        left_out=left_out,
        overrides=(eps(section, 1e-6),),
        class_names=config.class_names(),
    )


LAYOUTS = (
    Layout("Hugging Face CLIP", ("clip", "clip_vision_model"), _clip, {**CLIP, **CROP_BICUBIC}),
    Layout(
        "Hugging Face SigLIP",
        ("siglip", "siglip_vision_model"),
        _siglip,
        {**HALVES, "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash"},
    ),
)
