"""What a model wants to see: size, crop, interpolation and normalisation, from its pretrained configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from vitcompact.data.built import built_size
from vitcompact.data.described import check_described
from vitcompact.errors import UsageError
from vitcompact.options.data import DataOptions

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class InputConfig:
    """Preparation of one image: `input_size` is (channels, height, width), mean and std are on the 0..1 scale."""

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str

    @property
    def image_mode(self) -> str:
        """The Pillow mode that images are converted to; the number of channels where that is neither 1 nor 3."""
        return {1: "L", 3: "RGB"}.get(self.input_size[0], str(self.input_size[0]))


def resolve_input(model: nn.Module | Mapping[str, Any], options: DataOptions | None = None) -> InputConfig:
    """Preparation that `model` (a timm module, or its `pretrained_cfg`) expects, with the overrides of `options`.

    The size and the channels a module was built for beat those in its configuration, which timm does not update when a
    model is created with others.

    Raises:
        UsageError: mean and std do not match the channels.
        CheckpointError: the configuration cannot be that of a model.
    """
    options = options or DataOptions()
    cfg = dict(model) if isinstance(model, Mapping) else dict(getattr(model, "pretrained_cfg", None) or {})
    check_described(cfg, "the model's pretrained_cfg")
    overrides: dict[str, Any] = {
        "img_size": options.img_size,
        "mean": options.mean,
        "std": options.std,
        "crop_pct": options.crop_pct,
        "crop_mode": options.crop_mode or None,
        "interpolation": options.interpolation or None,
    }
    channels = None if isinstance(model, Mapping) else _built_channels(model, cfg.get("first_conv"))
    channels = channels or (cfg.get("input_size") or (3,))[0]
    for name in ("mean", "std"):
        values = overrides[name]
        if values is not None and len(values) not in (1, channels):
            raise UsageError(f"{name} needs 1 or {channels} values for this model, got {len(values)}")
    built_for = None if isinstance(model, Mapping) else built_size(model, cfg)
    if options.img_size is None and built_for is not None:
        overrides["input_size"] = (channels, *built_for)
    resolved = resolve_data_config({**overrides, "in_chans": channels}, pretrained_cfg=cfg)
    size = tuple(int(n) for n in resolved["input_size"])
    return InputConfig(
        input_size=(size[0], size[1], size[2]),
        mean=_per_channel(resolved["mean"], size[0]),
        std=_per_channel(resolved["std"], size[0]),
        interpolation=_plain_filter(resolved["interpolation"]),
        crop_pct=float(resolved["crop_pct"]),
        crop_mode=resolved["crop_mode"] or "center",
    )


def eval_transform(config: InputConfig) -> Transform:
    """timm's evaluation transform up to, but without, normalisation: a uint8 tensor (channels, height, width)."""
    return create_transform(
        config.input_size,
        is_training=False,
        interpolation=config.interpolation,
        mean=config.mean,
        std=config.std,
        crop_pct=config.crop_pct,
        crop_mode=config.crop_mode,
        normalize=False,
    )


def normalize(images: Tensor, config: InputConfig) -> Tensor:
    """uint8 (batch, channels, height, width) to normalised float32, by the arithmetic of ToTensor and Normalize."""
    mean = torch.tensor(config.mean, device=images.device).view(1, -1, 1, 1)
    std = torch.tensor(config.std, device=images.device).view(1, -1, 1, 1)
    return images.to(torch.float32).div_(255).sub_(mean).div_(std)


def as_pixels(images: Tensor, config: InputConfig) -> Tensor:
    """What `normalize` was given: uint8 (batch, channels, height, width)."""
    mean = torch.tensor(config.mean, device=images.device).view(1, -1, 1, 1)
    std = torch.tensor(config.std, device=images.device).view(1, -1, 1, 1)
    return (images.float() * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)


def _built_channels(model: nn.Module, first_conv: object) -> int | None:
    """Input channels of the layer that `pretrained_cfg` calls the first one, else of the first convolution."""
    layers = dict(model.named_modules())
    named = layers.get(first_conv) if isinstance(first_conv, str) else None
    first = named or next((layer for layer in layers.values() if isinstance(layer, nn.Conv2d)), None)
    channels = getattr(first, "in_channels", None)
    return channels if isinstance(channels, int) else None


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One value a channel; three-channel statistics on a one-channel model are averaged."""
    if len(values) == channels:
        return tuple(float(v) for v in values)
    return (float(sum(values) / len(values)),) * channels


def _plain_filter(interpolation: str) -> str:
    """timm's `random` means bilinear or bicubic by chance, in training only."""
    return "bicubic" if interpolation == "random" else interpolation
