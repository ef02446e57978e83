"""Hugging Face transformers: BEiT."""

from __future__ import annotations

from typing import Any

from vitcompact.checkpoint.foreign.config import Config
from vitcompact.checkpoint.foreign.described import Described, Layout, Size, Tensors
from vitcompact.checkpoint.foreign.hf_vit import BLOCKS, EMBEDDINGS, FFN, QKV
from vitcompact.checkpoint.foreign.names import fused, outputs, renamed
from vitcompact.checkpoint.foreign.plain import activation, eps, known_name, vit_args
from vitcompact.checkpoint.foreign.preprocessing import CROP_BICUBIC, HALVES
from vitcompact.checkpoint.overrides import Override

_ATTENTION = r"encoder\.layer\.(\d+)\.attention\.attention\."
_TABLE = r"relative_position_bias\.relative_position_bias_table"
_INDEX = r"(?:.+\.)?relative_position_index"
_RULES = (
    (_ATTENTION + r"query\.bias", r"blocks.\1.attn.q_bias"),
    (_ATTENTION + r"value\.bias", r"blocks.\1.attn.v_bias"),
    (_ATTENTION + _TABLE, r"blocks.\1.attn.relative_position_bias_table"),
    (rf"encoder\.{_TABLE}", "rel_pos_bias.relative_position_bias_table"),
    (_INDEX, "-index tables"),
    *(*BLOCKS, *FFN, *EMBEDDINGS),
    (r"encoder\.layer\.(\d+)\.lambda_([12])", r"blocks.\1.gamma_\2"),
    (r"pooler\.layernorm\.(\w+)", r"fc_norm.\1"),
    (r"lm_head\.(\w+)", "-the decoder of pretraining"),
    (r"classifier\.(\w+)", r"head.\1"),
)


def _beit(config: Config, tensors: Tensors, size: Size) -> Described:
    found, left_out = renamed(tensors, _RULES, prefix=r"beit\.")
    scale = config.number("layer_scale_init_value", 0.1)
    pooled = config.flag("use_mean_pooling", True) and "fc_norm.weight" in found
    args: dict[str, Any] = {
        **vit_args(config),
        "global_pool": "avg" if pooled else "token",
        "init_values": scale or None,
        "use_abs_pos_emb": config.flag("use_absolute_position_embeddings", False),
        "use_rel_pos_bias": config.flag("use_relative_position_bias", False),
        "use_shared_rel_pos_bias": config.flag("use_shared_relative_position_bias", False),
        "num_classes": outputs(found, "head"),
    }
    overrides = [eps(config, 1e-12)]
    if (act := activation(config)) != "gelu":
        overrides.append(Override("act", act, ("blocks.#.mlp.act",)))
    name = f"beit_{{size}}_patch{args['patch_size']}_{args['img_size'][0]}"
    return Described(
        known_name(name, args["embed_dim"], "beit_base_patch16_224"),
        args,
        fused(found, QKV, "qkv"),
        args["num_classes"],
        left_out=left_out,
        overrides=tuple(overrides),
        class_names=config.class_names(),
    )


LAYOUTS = (Layout("Hugging Face BEiT", ("beit",), _beit, {**HALVES, **CROP_BICUBIC, "crop_pct": 224 / 256}),)
