"""Hugging Face transformers: Swin."""

from __future__ import annotations

from typing import Any

from vitcompact.checkpoint.foreign.config import Config
from vitcompact.checkpoint.foreign.described import Described, Layout, Size, Tensors
from vitcompact.checkpoint.foreign.names import fused, outputs, renamed
from vitcompact.checkpoint.foreign.plain import activation, eps
from vitcompact.checkpoint.foreign.preprocessing import IMAGENET
from vitcompact.checkpoint.overrides import Override
from vitcompact.errors import CheckpointError

_BLOCK = r"encoder\.layers\.(\d+)\.blocks\.(\d+)\."
_RULES = (
    (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r"embeddings\.norm\.(\w+)", r"patch_embed.norm.\1"),
    (r"embeddings\.mask_token", "-the mask token of pretraining"),
    (_BLOCK + r"layernorm_before\.(\w+)", r"layers.\1.blocks.\2.norm1.\3"),
    (_BLOCK + r"layernorm_after\.(\w+)", r"layers.\1.blocks.\2.norm2.\3"),
    (_BLOCK + r"attention\.self\.(query|key|value)\.(\w+)", r"layers.\1.blocks.\2.attn.\3.\4"),
    (
        _BLOCK + r"attention\.self\.relative_position_bias_table",
        r"layers.\1.blocks.\2.attn.relative_position_bias_table",
    ),
    (_BLOCK + r"attention\.self\.relative_position_index", "-index tables"),
    (_BLOCK + r"attention\.output\.dense\.(\w+)", r"layers.\1.blocks.\2.attn.proj.\3"),
    (_BLOCK + r"intermediate\.dense\.(\w+)", r"layers.\1.blocks.\2.mlp.fc1.\3"),
    (_BLOCK + r"output\.dense\.(\w+)", r"layers.\1.blocks.\2.mlp.fc2.\3"),
    (r"encoder\.layers\.(\d+)\.downsample\.(.+)", r"downsample.\1.\2"),
    (r"layernorm\.(\w+)", r"norm.\1"),
    (r"decoder\..+", "-the decoder of pretraining"),
    (r"classifier\.(\w+)", r"head.fc.\1"),
)


def moved_downsampling(tensors: Tensors) -> Tensors:
    """`downsample.N.…`, which ends stage N in the original, as `layers.N+1.downsample.…`, which begins the next."""
    found = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        stage, _, last = rest.partition(".")
        found[f"layers.{int(stage) + 1}.downsample.{last}" if first == "downsample" else name] = tensor
    return found


def _swin(config: Config, tensors: Tensors, size: Size) -> Described:
    found, left_out = renamed(tensors, _RULES, prefix=r"swin\.")
    if config.flag("use_absolute_embeddings", False):
        raise CheckpointError(f"{config.where}: absolute position embeddings, which timm's Swin does not have")
    depths, heads = config.integers("depths", (2, 2, 6, 2)), config.integers("num_heads", (3, 6, 12, 24))
    args: dict[str, Any] = {
        "img_size": config.size("image_size", 224),
        "patch_size": config.integer("patch_size", 4),
        "in_chans": config.integer("num_channels", 3, most=1024),
        "embed_dim": config.integer("embed_dim", 96),
        "depths": depths,
        "num_heads": heads,
        "window_size": config.integer("window_size", 7),
        "mlp_ratio": config.number("mlp_ratio", 4.0),
        "qkv_bias": config.flag("qkv_bias", True),
        "num_classes": outputs(found, "head.fc"),
    }
    overrides = [eps(config, 1e-5, "layers.#.blocks.#.norm1", "layers.#.blocks.#.norm2", "norm")]
    if (act := activation(config)) != "gelu":
        overrides.append(Override("act", act, ("layers.#.blocks.#.mlp.act",)))
    return Described(
        {96: "swin_tiny", 128: "swin_base", 192: "swin_large"}.get(args["embed_dim"], "swin_tiny")
        + ("_patch4_window7_224"),
        args,
        moved_downsampling(fused(found, ("query", "key", "value"), "qkv")),
        args["num_classes"],
        left_out=left_out,
        overrides=tuple(overrides),
        class_names=config.class_names(),
    )


LAYOUTS = (
    Layout(
        "Hugging Face Swin",
        ("swin",),
        _swin,
        {**IMAGENET, "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash"},
    ),
)
