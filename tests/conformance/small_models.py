"""Small models of timm classes whose entrypoints fix their sizes, registered with timm under names of ours."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.gcvit import GlobalContextVit
from timm.models.metaformer import Attention, LayerNorm2dNoBias, LayerNormNoBias, MetaFormer, SepConv
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from timm.models.nest import Nest
from timm.models.volo import VOLO
from torch import nn


def _cfg(name: str) -> dict[str, Any]:
    return {"input_size": (3, 64, 64), "num_classes": 7, "fixed_input_size": name not in ("caformer", "hybrid")}


default_cfgs = generate_default_cfgs(
    {
        f"vitcompact_small_{name}.untrained": _cfg(name)
        for name in ("volo", "nest", "gcvit", "caformer", "mvit", "botnet", "halonet", "hybrid")
    }
)


def _built(cls: type[nn.Module], variant: str, **sizes: Any) -> Any:
    return build_model_with_cfg(cls, f"vitcompact_small_{variant}", False, **sizes)


@register_model
def vitcompact_small_volo(pretrained: bool = False, **kwargs: Any) -> VOLO:
    """Two stages of attention after one of outlook attention."""
    sizes = {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 32, 32), "num_heads": (2, 4, 4, 4)}
    return _built(VOLO, "volo", **sizes, **kwargs)


@register_model
def vitcompact_small_nest(pretrained: bool = False, **kwargs: Any) -> Nest:
    """Three levels of blocks."""
    sizes = {"embed_dims": (32, 32, 64), "num_heads": (2, 2, 4), "depths": (1, 1, 2)}
    return _built(Nest, "nest", **sizes, **kwargs)


@register_model
def vitcompact_small_gcvit(pretrained: bool = False, **kwargs: Any) -> GlobalContextVit:
    """Local and global layers in turn."""
    sizes = {"depths": (2, 2, 2, 2), "num_heads": (2, 2, 4, 4), "embed_dim": 8, "window_ratio": (16, 16, 16, 32)}
    return _built(GlobalContextVit, "gcvit", **sizes, **kwargs)


@register_model
def vitcompact_small_caformer(pretrained: bool = False, **kwargs: Any) -> MetaFormer:
    """Convolutions, then attention."""
    sizes = {"depths": (1, 1, 1, 1), "dims": (16, 32, 64, 64)}
    mixers = [SepConv, SepConv, Attention, Attention]
    norms = [LayerNorm2dNoBias] * 2 + [LayerNormNoBias] * 2
    return _built(MetaFormer, "caformer", token_mixers=mixers, norm_layers=norms, **sizes, **kwargs)


@register_model
def vitcompact_small_mvit(pretrained: bool = False, **kwargs: Any) -> MultiScaleVit:
    """Pooled queries between stages, a class token."""
    sizes = {"depths": (1, 1, 1, 1), "embed_dim": (16, 32, 32, 64), "num_heads": (2, 2, 2, 4), "use_cls_token": True}
    return _built(MultiScaleVit, "mvit", model_cfg=MultiScaleVitCfg(**sizes), **kwargs)


def _byoanet(kind: str, attention: dict[str, Any], **kwargs: Any) -> ByobNet:
    blocks = (
        ByoBlockCfg(type="self_attn", d=1, c=64, s=1, gs=0, br=0.25),
        ByoBlockCfg(type="self_attn", d=1, c=64, s=2, gs=0, br=0.5),
    )
    layer = {"botnet": "bottleneck", "halonet": "halo"}[kind]
    cfg = ByoModelCfg(blocks, stem_chs=16, stem_type="tiered", self_attn_layer=layer, self_attn_kwargs=attention)
    return _built(ByobNet, kind, model_cfg=cfg, **kwargs)


@register_model
def vitcompact_small_botnet(pretrained: bool = False, **kwargs: Any) -> ByobNet:
    """Attention over the whole map, outputs pooled in the second layer."""
    return _byoanet("botnet", {"qkv_bias": True, "scale_pos_embed": True}, **{"img_size": 64, **kwargs})


@register_model
def vitcompact_small_halonet(pretrained: bool = False, **kwargs: Any) -> ByobNet:
    """Windows with a halo, every other row and column of queries in the second layer."""
    return _byoanet("halonet", {"block_size": 4, "halo_size": 1, "num_heads": 4}, **kwargs)


@register_model
def vitcompact_small_hybrid(pretrained: bool = False, **kwargs: Any) -> MobileNetV3:
    """Multi-query attention with and without coarser keys, and attention with all heads, of MobileNetV4."""
    stages = [["cn_r1_k3_s2_e1_c16"], ["uir_r1_a3_k5_s2_e2_c32"]]
    stages += [["mqa_r1_k3_h4_s1_v2_d8_c32", "mqa_r1_k3_h4_s1_d8_c32", "mha_r1_k3_h4_s1_d8_c32"]]
    return _built(
        MobileNetV3,
        "hybrid",
        block_args=decode_arch_def([*stages, ["cn_r1_k1_s1_c64"]]),
        stem_size=8,
        num_features=64,
        layer_scale_init_value=0.5,
        **kwargs,
    )
