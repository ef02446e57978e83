"""Small models of timm classes whose entrypoints fix their sizes, registered with timm under names of ours."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.gcvit import GlobalContextVit
from timm.models.metaformer import Attention, LayerNorm2dNoBias, LayerNormNoBias, MetaFormer, SepConv
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from timm.models.nest import Nest
from timm.models.volo import VOLO
from torch import nn


def _cfg(name: str) -> dict[str, Any]:
    return {"input_size": (3, 64, 64), "num_classes": 7, "fixed_input_size": name != "caformer"}


default_cfgs = generate_default_cfgs(
    {f"vitcompact_small_{name}.untrained": _cfg(name) for name in ("volo", "nest", "gcvit", "caformer", "mvit")}
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
