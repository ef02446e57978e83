"""A Next-ViT with every kind of block, and a tenth of the channels that timm's constructor has for all sizes."""

from __future__ import annotations

from typing import Any

from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, generate_default_cfgs, nextvit, register_model
from timm.models.nextvit import ConvNormAct, NextConvBlock, NextStage, NextTransformerBlock, NextViT
from torch import nn

NAME = "narrow_nextvit"
STEM = 16
STAGES: tuple[tuple[int, ...], ...] = ((32,), (128,), (64, 128), (128,))
"""Channels of each block; 128 is six heads of 16 channels beside 32 channels of convolution."""

default_cfgs = generate_default_cfgs({f"{NAME}.untrained": {**nextvit._cfg(), "input_size": (3, 64, 64)}})


def _narrow(
    num_classes: int = 1000, global_pool: str = "avg", drop_path_rate: float = 0.0, in_chans: int = 3
) -> NextViT:
    """timm's class around narrower parts, which its arguments do not offer."""
    model = NextViT(in_chans, num_classes, depths=(1, 1, 5, 1), device="meta")
    common: dict[str, Any] = {"norm_layer": nn.BatchNorm2d, "act_layer": nn.ReLU}
    model.stem = nn.Sequential(
        *(ConvNormAct(*channels, kernel_size=3, stride=2, **common) for channels in ((in_chans, STEM), (STEM, STEM)))
    )
    stages, before = [], STEM
    for channels, stride, sr_ratio in zip(STAGES, (1, 2, 2, 2), (8, 4, 2, 1), strict=True):
        blocks = [NextTransformerBlock if width == 128 else NextConvBlock for width in channels]
        stages.append(
            NextStage(before, channels, blocks, stride, sr_ratio, 0.75, drop_path=drop_path_rate, head_dim=16, **common)
        )
        before = channels[-1]
    model.stages = nn.Sequential(*stages)
    for info, channels in zip(model.feature_info, STAGES, strict=True):
        info["num_chs"] = channels[-1]
    model.norm = nn.BatchNorm2d(before)
    model.head = ClassifierHead(pool_type=global_pool, in_features=before, num_classes=num_classes)
    model.num_features = model.head_hidden_size = before
    model._initialize_weights()
    return model


@register_model
def narrow_nextvit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """What `timm.create_model` calls."""
    features = {"flatten_sequential": True, "out_indices": kwargs.pop("out_indices", (0, 1, 2, 3))}
    return build_model_with_cfg(_narrow, NAME, pretrained, feature_cfg=features, **kwargs)
