"""What the plain ViTs of other libraries have in common."""

from __future__ import annotations

import math
from typing import Any

import timm

from vitcompact.checkpoint.foreign.config import Config
from vitcompact.checkpoint.overrides import Override

_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}
ACTIVATIONS = {
    **{"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"},
    **{"quick_gelu": "quick_gelu", "silu": "silu", "swish": "silu", "relu": "relu"},
}
"""transformers' names of activations, and timm's."""


def vit_args(config: Config, *, size: int = 224, patch: int = 16) -> dict[str, Any]:
    """Arguments that every plain ViT has, by the names of transformers; its defaults are those of a base model."""
    width = config.integer("hidden_size", 768)
    return {
        "img_size": config.size("image_size", size),
        "patch_size": config.integer("patch_size", patch),
        "in_chans": config.integer("num_channels", 3, most=1024),
        "embed_dim": width,
        "depth": config.integer("num_hidden_layers", 12, most=512),
        "num_heads": config.integer("num_attention_heads", 12, most=width),
        "mlp_ratio": ratio_of(config.integer("intermediate_size", 4 * width), width),
    }


def ratio_of(hidden: int, width: int) -> float:
    """The `mlp_ratio` of which timm makes exactly `hidden` again, as `int(width * ratio)`."""
    ratio = hidden / width
    while int(width * ratio) < hidden:
        ratio = math.nextafter(ratio, math.inf)
    return ratio


def activation(config: Config, default: str = "gelu") -> str:
    """timm's name of the FFN's activation.

    Raises:
        CheckpointError: one that timm does not have.
    """
    name = config.text("hidden_act", default)
    if name not in ACTIVATIONS:
        raise config.error("hidden_act", f"expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def eps(config: Config, default: float, *modules: str) -> Override:
    """`layer_norm_eps` on some norms, or on all."""
    return Override("eps", config.number("layer_norm_eps", default), modules or ("*",))


def known_name(pattern: str, width: int, fallback: str) -> str:
    """A timm name with the size word of `width` in place of `{size}`, where there is one.

    Its class and description serve; all its arguments are given.
    """
    name = pattern.format(size=_SIZES.get(width, ""))
    return name if timm.is_model(name) else fallback
