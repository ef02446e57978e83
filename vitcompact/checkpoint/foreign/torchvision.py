"""torchvision's weights files: `vit_*`, `swin_*` and `swin_v2_*`, known by the names and shapes in them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitcompact.checkpoint.foreign.described import Described, Tensors
from vitcompact.checkpoint.foreign.names import outputs, renamed
from vitcompact.checkpoint.foreign.plain import known_name, ratio_of
from vitcompact.checkpoint.foreign.preprocessing import IMAGENET
from vitcompact.checkpoint.overrides import Override
from vitcompact.errors import CheckpointError

_HEAD_WIDTHS = {768: 64, 1024: 64, 1280: 80}  # of vit_b, vit_l and vit_h: shapes do not tell the number of heads
_SIGNS = ("encoder.pos_embedding", "features.0.0.weight")
_VIT_LAYER = r"encoder\.layers\.encoder_layer_(\d+)\."
_VIT = (
    (r"class_token", "cls_token"),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"conv_proj\.(\w+)", r"patch_embed.proj.\1"),
    (_VIT_LAYER + r"ln_([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
    (_VIT_LAYER + r"self_attention\.in_proj_(\w+)", r"blocks.\1.attn.qkv.\2"),
    (_VIT_LAYER + r"self_attention\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (_VIT_LAYER + r"mlp\.(?:0|linear_1)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (_VIT_LAYER + r"mlp\.(?:3|linear_2)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.ln\.(\w+)", r"norm.\1"),
    (r"heads\.(?:head|0)\.(\w+)", r"head.\1"),
)
_SWIN_BLOCK = r"features\.(\d+)\.(\d+)\."
_SWIN = (
    (r"features\.0\.0\.(\w+)", r"patch_embed.proj.\1"),
    (r"features\.0\.2\.(\w+)", r"patch_embed.norm.\1"),
    (r"features\.(\d+)\.(reduction|norm)\.(\w+)", r"features.\1.downsample.\2.\3"),
    (_SWIN_BLOCK + r"attn\.(relative_position_index|relative_coords_table)", "-index tables"),
    (_SWIN_BLOCK + r"mlp\.0\.(\w+)", r"features.\1.blocks.\2.mlp.fc1.\3"),
    (_SWIN_BLOCK + r"mlp\.3\.(\w+)", r"features.\1.blocks.\2.mlp.fc2.\3"),
    (_SWIN_BLOCK + r"((?:norm[12]|attn)\..+)", r"features.\1.blocks.\2.\3"),
    (r"norm\.(\w+)", r"norm.\1"),
    (r"head\.(\w+)", r"head.fc.\1"),
)


def torchvision_model(tensors: Mapping[str, Tensor]) -> Described | None:
    """What a state dict holds, None where it is none of torchvision's.

    Raises:
        CheckpointError: of torchvision's by its names, but not by its shapes.
    """
    tensors = _without_prefix(tensors)
    try:
        if "encoder.pos_embedding" in tensors and "conv_proj.weight" in tensors:
            return _vit(tensors)
        if "features.0.0.weight" in tensors and any(name.endswith("attn.qkv.weight") for name in tensors):
            return _swin(tensors)
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"weights with torchvision's names, but damaged or changed: {error}") from error
    return None


def _without_prefix(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Only what is behind a module around the model (`model.conv_proj.weight`), where there is one."""
    for sign in _SIGNS:
        prefixes = [name.removesuffix(sign) for name in tensors if name.endswith(f".{sign}")]
        if len(prefixes) == 1:
            start = len(prefixes[0])
            return {name[start:]: tensor for name, tensor in tensors.items() if name.startswith(prefixes[0])}
    return tensors


def _vit(tensors: Mapping[str, Tensor]) -> Described:
    found, left_out = renamed(tensors, _VIT)
    width, channels, patch, _ = found["patch_embed.proj.weight"].shape
    if width not in _HEAD_WIDTHS:
        raise CheckpointError(f"a torchvision ViT of width {width}: its shapes do not tell its number of heads")
    grid = math.isqrt(found["pos_embed"].shape[1] - 1)
    size = grid * patch
    args: dict[str, Any] = {
        "img_size": size,
        "patch_size": patch,
        "in_chans": channels,
        "embed_dim": width,
        "depth": _count(found, r"blocks\.(\d+)\."),
        "num_heads": width // _HEAD_WIDTHS[width],
        "mlp_ratio": ratio_of(len(found["blocks.0.mlp.fc1.weight"]), width),
        "num_classes": outputs(found, "head"),
    }
    name = known_name(f"vit_{{size}}_patch{patch}_224", width, "vit_base_patch16_224")
    # Trained from scratch at 224 pixels; the larger ones come from SWAG, whose images are not cropped.
    crop = {"interpolation": "bilinear", "crop_pct": 224 / 256} if size == 224 else {"interpolation": "bicubic"}
    prepare = {**IMAGENET, "crop_pct": 1.0, "crop_mode": "center", **crop}
    return Described(
        name,
        args,
        found,
        args["num_classes"],
        left_out=left_out,
        prepare=prepare,
        overrides=(Override("eps", 1e-6),),
    )


def _swin(tensors: Mapping[str, Tensor]) -> Described:
    named, left_out = renamed(tensors, _SWIN)
    second = any(".cpb_mlp." in name for name in named)
    found = {_stage(name): tensor for name, tensor in named.items()}
    stages = _count(found, r"layers\.(\d+)\.")
    first = found["layers.0.blocks.0.attn.qkv.weight"].shape[1]
    window = _window(tensors)
    if second:
        for name in [name for name in found if name.endswith("attn.qkv.bias")]:
            query, _, value = found.pop(name).chunk(3)  # the library sets the middle third, that of the keys, to 0
            found[name.replace("qkv.bias", "q_bias")], found[name.replace("qkv.bias", "v_bias")] = query, value
    heads_of = "logit_scale" if second else "relative_position_bias_table"
    args: dict[str, Any] = {
        "img_size": 32 * window,
        "patch_size": found["patch_embed.proj.weight"].shape[-1],
        "in_chans": found["patch_embed.proj.weight"].shape[1],
        "embed_dim": first,
        "depths": [_count(found, rf"layers\.{stage}\.blocks\.(\d+)\.") for stage in range(stages)],
        "num_heads": [
            found[f"layers.{stage}.blocks.0.attn.{heads_of}"].shape[0 if second else 1] for stage in range(stages)
        ],
        "window_size": window,
        "mlp_ratio": ratio_of(len(found["layers.0.blocks.0.mlp.fc1.weight"]), first),
        "num_classes": outputs(found, "head.fc"),
    }
    size = {96: "tiny", 128: "base"}.get(first, "tiny")
    size = "small" if size == "tiny" and sum(args["depths"]) > 12 else size
    resized = {"tiny": 260, "small": 260, "base": 272} if second else {"tiny": 232, "small": 246, "base": 238}
    return Described(
        f"swinv2_{size}_window8_256" if second else f"swin_{size}_patch4_window7_224",
        args,
        found,
        args["num_classes"],
        left_out=left_out,
        prepare={
            **IMAGENET,
            "interpolation": "bicubic",
            "crop_pct": min(1.0, args["img_size"] / resized[size]),
            "crop_mode": "center",
        },
        overrides=(Override("eps", 1e-5),),
    )


def _stage(name: str) -> str:
    """`features.1` is the first stage, `features.2` the step to the second, and so on."""
    match = re.fullmatch(r"features\.(\d+)\.(.+)", name)
    return f"layers.{int(match[1]) // 2}.{match[2]}" if match else name


def _window(tensors: Mapping[str, Tensor]) -> int:
    """Side of a window, from the index table (side^4 entries) of the first block."""
    return math.isqrt(math.isqrt(tensors["features.1.0.attn.relative_position_index"].numel()))


def _count(tensors: Tensors, pattern: str) -> int:
    return 1 + max(int(match[1]) for name in tensors if (match := re.match(pattern, name)))
