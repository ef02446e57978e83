"""Weights of timm models as the original repositories name them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

StateDict = dict[str, Tensor]


def swin(weights: Mapping[str, Tensor], windows: int = 4, window: int = 7) -> StateDict:
    """Microsoft's Swin: it downsamples at the end of a stage, calls the classifier `head`, keeps index and mask."""
    renamed: StateDict = {}
    for name, tensor in weights.items():
        name = re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name)
        renamed[name.replace("head.fc.", "head.")] = tensor
    area = window**2
    renamed["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(area, area, dtype=torch.long)
    renamed["layers.0.blocks.1.attn_mask"] = torch.zeros(windows, area, area)
    return renamed


def pvt_v2(weights: Mapping[str, Tensor]) -> StateDict:
    """PVT v2: numbered patch embeddings, blocks and norms."""
    renamed: StateDict = {}
    for name, tensor in weights.items():
        name = name.replace("mlp.dwconv", "mlp.dwconv.dwconv")
        name = re.sub(r"^patch_embed\.", "patch_embed1.", name)
        name = re.sub(r"^stages\.(\d)\.downsample", lambda found: f"patch_embed{int(found[1]) + 1}", name)
        name = re.sub(r"^stages\.(\d)\.blocks\.(\d+)", lambda found: f"block{int(found[1]) + 1}.{found[2]}", name)
        name = re.sub(r"^stages\.(\d)\.norm", lambda found: f"norm{int(found[1]) + 1}", name)
        renamed[name] = tensor
    return renamed


def dinov2(weights: Mapping[str, Tensor], chunks: int = 1) -> StateDict:
    """DINOv2: with a mask token, registers beside a class token that has a position, and blocks in chunks."""
    renamed = dict(weights)
    dim = renamed["cls_token"].shape[-1]
    renamed["mask_token"] = torch.zeros(1, dim)
    if "reg_token" in renamed:
        renamed["register_tokens"] = renamed.pop("reg_token")
        position = torch.zeros(1, 1, dim)
        renamed["pos_embed"] = torch.cat([position, renamed["pos_embed"]], dim=1)
    depth = 1 + max(int(found[1]) for name in renamed if (found := re.match(r"blocks\.(\d+)", name)))
    if chunks > 1:
        size = -(-depth // chunks)
        renamed = {
            re.sub(r"^blocks\.(\d+)", lambda found: f"blocks.{int(found[1]) // size}.{found[1]}", name): tensor
            for name, tensor in renamed.items()
        }
    return renamed


def openai_clip(weights: Mapping[str, Tensor]) -> StateDict:
    """OpenAI's CLIP: an image tower under `visual.` beside the text tower; the classifier is the projection."""
    swaps = [
        *(("patch_embed.proj", "conv1"), ("norm_pre", "ln_pre"), ("blocks.", "transformer.resblocks.")),
        *(("qkv.", "in_proj_"), ("attn.proj", "attn.out_proj"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")),
    ]
    renamed: StateDict = {}
    for name, tensor in weights.items():
        if name == "head.bias":
            continue
        if name == "head.weight":
            name, tensor = "proj", tensor.t().contiguous()
        elif name == "cls_token":
            name, tensor = "class_embedding", tensor[0, 0]
        elif name == "pos_embed":
            name, tensor = "positional_embedding", tensor[0]
        for ours, theirs in swaps:
            name = name.replace(ours, theirs)
        name = re.sub(r"(resblocks\.\d+)\.norm", r"\1.ln_", name)
        name = re.sub(r"^norm\.", "ln_post.", name)
        renamed[f"visual.{name}"] = tensor
    text = {
        "token_embedding.weight": torch.zeros(9, 4),
        "logit_scale": torch.zeros(()),
        "ln_final.weight": torch.ones(4),
    }
    text["transformer.resblocks.0.ln_1.weight"] = torch.ones(4)
    text["text_projection"] = torch.zeros(4, 4)
    text["positional_embedding"] = torch.zeros(7, 4)
    return {**renamed, **text}


def prefixed(weights: Mapping[str, Tensor], prefix: str) -> StateDict:
    """The same names behind a prefix."""
    return {prefix + name: tensor for name, tensor in weights.items()}


def mae_decoder(dim: int) -> StateDict:
    """What pre-training by masked autoencoders adds."""
    return {
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_pos_embed": torch.zeros(1, 5, 8),
        "decoder_embed.weight": torch.zeros(8, dim),
        "decoder_blocks.0.norm1.weight": torch.ones(8),
        "decoder_norm.weight": torch.ones(8),
        "decoder_pred.weight": torch.zeros(12, 8),
    }


def dino_head(dim: int) -> StateDict:
    """DINO's projection head."""
    return {"mlp.0.weight": torch.zeros(8, dim), "mlp.0.bias": torch.zeros(8), "last_layer.weight_v": torch.zeros(9, 8)}
