"""open_clip directories (`open_clip_config.json`): the vision tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vitcompact.checkpoint.foreign.config import Config
from vitcompact.checkpoint.foreign.described import Described, Layout, Size, Tensors
from vitcompact.checkpoint.foreign.names import outputs, renamed
from vitcompact.checkpoint.foreign.plain import known_name, ratio_of
from vitcompact.checkpoint.foreign.preprocessing import CLIP
from vitcompact.checkpoint.names import require_known
from vitcompact.checkpoint.overrides import Override
from vitcompact.errors import CheckpointError, UsageError

FILE = "open_clip_config.json"
TYPE = "open_clip"
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
_TEXT = (
    r"transformer\..+|text\..+|token_embedding\..+|positional_embedding|ln_final\..+|text_projection(?:\..+)?"
    r"|logit_(?:scale|bias)|attn_mask",
    "-the text tower",
)
_BLOCK = r"transformer\.resblocks\.(\d+)\."
_RULES = (
    (r"class_embedding", "cls_token"),
    (r"positional_embedding", "pos_embed"),
    (r"proj", "proj"),
    (r"conv1\.(\w+)", r"patch_embed.proj.\1"),
    (r"ln_pre\.(\w+)", r"norm_pre.\1"),
    (r"ln_post\.(\w+)", r"norm.\1"),
    (_BLOCK + r"ln_([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
    (_BLOCK + r"attn\.in_proj_(\w+)", r"blocks.\1.attn.qkv.\2"),
    (_BLOCK + r"attn\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (_BLOCK + r"mlp\.c_fc\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (_BLOCK + r"mlp\.c_proj\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (_BLOCK + r"ls_([12])\.gamma", r"blocks.\1.ls\2.gamma"),
)
_UNKNOWN = ("attentional_pool", "input_patchnorm", "no_ln_pre", "final_ln_after_pool")


def weights_file(directory: Path) -> Path | None:
    """The file that the library itself would take, None where there is none of its names."""
    return next((directory / name for name in _WEIGHTS if (directory / name).is_file()), None)


def _open_clip(config: Config, tensors: Tensors, size: Size) -> Described:
    model = config.section("model_cfg")
    vision = model.section("vision_cfg")
    visual = {name[len("visual.") :]: tensor for name, tensor in tensors.items() if name.startswith("visual.")}
    _, left_out = renamed({n: t for n, t in tensors.items() if not n.startswith("visual.")}, (_TEXT,))
    if not visual:
        raise CheckpointError("no tensors of a vision tower (visual.…) in the file")
    described = _timm_tower(vision, visual) if vision.data.get("timm_model_name") else _own_tower(model, vision, visual)
    return Described(
        described.architecture,
        described.args,
        described.tensors,
        described.num_classes,
        left_out={**left_out, **described.left_out},
        prepare=_prepare(config.section("preprocess_cfg")),
        overrides=described.overrides,
    )


def _own_tower(model: Config, vision: Config, visual: Tensors) -> Described:
    if unknown := [name for name in _UNKNOWN if vision.data.get(name)]:
        raise CheckpointError(f"{vision.where}: {', '.join(unknown)}, which timm's ViT does not have")
    if isinstance(vision.data.get("layers"), list):
        raise CheckpointError(f"{vision.where}: a ResNet tower, which has no transformer blocks")
    pool = vision.text("pool_type", "tok")
    if pool not in ("tok", "avg"):
        raise vision.error("pool_type", "expected tok or avg")
    found, left_out = renamed(visual, _RULES)
    width = vision.integer("width", 768)
    heads = width // vision.integer("head_width", 64)
    found["cls_token"] = found["cls_token"].reshape(1, 1, width)
    found["pos_embed"] = found["pos_embed"].unsqueeze(0)
    if (projection := found.pop("proj", None)) is not None:
        found["head.weight"], found["head.bias"] = projection.T.contiguous(), torch.zeros(projection.shape[1])
    scale = vision.data.get("ls_init_value")
    args: dict[str, Any] = {
        "img_size": vision.size("image_size", 224),
        "patch_size": vision.integer("patch_size", 16),
        "in_chans": found["patch_embed.proj.weight"].shape[1],
        "embed_dim": width,
        "depth": vision.integer("layers", 12, most=512),
        "num_heads": heads,
        "mlp_ratio": ratio_of(int(width * vision.number("mlp_ratio", 4.0)), width),
        "pre_norm": True,
        "act_layer": "quick_gelu" if model.flag("quick_gelu", False) else "gelu",
        "init_values": scale,
        "num_classes": outputs(found, "head"),
    }
    if pool == "avg":
        args.update(global_pool="avg", fc_norm=False)
    name = f"vit_{{size}}_patch{args['patch_size']}_clip_{args['img_size'][0]}"
    return Described(
        known_name(name, width, "vit_base_patch32_clip_224"),
        args,
        found,
        args["num_classes"],
        left_out=left_out,
        overrides=(Override("eps", 1e-5),),
    )


def _timm_tower(vision: Config, visual: Tensors) -> Described:
    """A timm model with a projection behind it."""
    name = vision.text("timm_model_name", "")
    try:
        architecture = require_known(name)
    except UsageError as error:
        raise CheckpointError(f"{vision.where}: {error}") from error
    trunk = {key[len("trunk.") :]: tensor for key, tensor in visual.items() if key.startswith("trunk.")}
    head = {key: tensor for key, tensor in visual.items() if not key.startswith("trunk.")}
    if set(head) - {"head.proj.weight", "head.proj.bias"}:
        raise CheckpointError(f"{vision.where}: a projection of several layers, which no head of timm has")
    args: dict[str, Any] = {"img_size": vision.size("image_size", 224)}
    if vision.data.get("timm_pool") in ("avg", "token", "map"):
        args["global_pool"] = vision.data["timm_pool"]
    if head:
        trunk["head.weight"] = head["head.proj.weight"]
        trunk["head.bias"] = head.get("head.proj.bias", torch.zeros(len(trunk["head.weight"])))
    args["num_classes"] = outputs(trunk, "head")
    return Described(architecture, args, trunk, args["num_classes"])


def _prepare(config: Config) -> dict[str, Any]:
    found: dict[str, Any] = {
        "mean": config.numbers("mean", CLIP["mean"]),
        "std": config.numbers("std", CLIP["std"]),
        "interpolation": config.text("interpolation", "bicubic"),
        "crop_pct": 1.0,
        "crop_mode": {"shortest": "center", "longest": "border"}.get(config.text("resize_mode", "shortest"), "squash"),
    }
    return found


LAYOUTS = (Layout("open_clip", (TYPE,), _open_clip, {}),)
