"""How each reference checkpoint is trained. All see CIFAR-10's 32 px images enlarged."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from vitcompact.errors import UsageError


@dataclass(frozen=True)
class Recipe:
    """One model and its training.

    Attributes:
        architecture: timm's name.
        model_args: what timm's entrypoint is given; recorded in the checkpoint.
        sizes: `(share, pixels)`: the image's side from this share of the schedule on; the last is the model's size.
        lr: peak learning rate of AdamW, for `batch_size`; warm-up, then cosine down to a hundredth of it.
        layer_decay: factor between the learning rates of neighbouring layers, for pretrained weights.
        ema_decay: of the moving average of the weights, which is the model that is kept.
        shift: images move by up to so many of their own pixels.
        cutout: side of the covered square, in pixels of the image before it is enlarged.
    """

    architecture: str
    model_args: dict[str, Any] = field(default_factory=dict)
    sizes: tuple[tuple[float, int], ...] = ((0.0, 64),)
    interpolation: str = "bilinear"
    epochs: int = 14
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05
    layer_decay: float | None = None
    warmup: float = 0.05
    label_smoothing: float = 0.1
    clip_grad: float = 2.0
    ema_decay: float = 0.998
    shift: int = 4
    cutout: int = 8
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD

    def size_at(self, progress: float) -> int:
        """Pixels of an image's side when `progress` of the schedule, in [0, 1], is done."""
        return [size for share, size in self.sizes if share <= progress][-1]

    @property
    def input_size(self) -> int:
        """Pixels of the finished model's images."""
        return self.sizes[-1][1]

    @property
    def data_config(self) -> dict[str, Any]:
        """The preprocessing, as timm records it."""
        return {
            "input_size": (3, self.input_size, self.input_size),
            "mean": self.mean,
            "std": self.std,
            "interpolation": self.interpolation,
            "crop_pct": 1.0,
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def create(self, num_classes: int, init: str | None = None) -> nn.Module:
        """The model: untrained, or with the weights of `init`, any model that timm loads, where they fit.

        Raises:
            UsageError: `init` cannot be loaded, or is of another architecture.
        """
        args = {**self.model_args, "num_classes": num_classes}
        if init is None:
            untrained: nn.Module = timm.create_model(self.architecture, pretrained=False, **args)
            return untrained
        try:
            model: nn.Module = timm.create_model(init, pretrained=True, **args)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise UsageError(f"--init {init} cannot be loaded as {self.architecture}: {error}") from error
        found = model.pretrained_cfg["architecture"]  # type: ignore[index]
        if found != self.architecture:
            raise UsageError(f"--init {init} is a {found}; this recipe needs a {self.architecture}")
        return model


# Widths of NextViT are fixed in timm, and its third stage has at least 5 blocks: depths and stem are what can shrink.
# At 64 px its stages see 16, 8, 4 and 2 pixels a side. With timm's own pooling (8, 4, 2, 1) the second and third stage
# would attend to 4 keys; with this one both attend to 16, the second through pooling.
RECIPES = {
    "nextvit": Recipe(
        architecture="nextvit_small",
        model_args={
            "depths": (1, 2, 5, 1),
            "stem_chs": (32, 16, 48),
            "sr_ratios": (8, 2, 1, 1),
            "drop_path_rate": 0.0,
        },
        sizes=((0.0, 32), (0.35, 48), (0.7, 64)),
        epochs=19,
    ),
    "pvt_v2_b0": Recipe(
        architecture="pvt_v2_b0",
        sizes=((0.0, 32), (0.35, 48), (0.7, 64)),
        epochs=40,
        clip_grad=1.0,
    ),
    # Needs --init: 50,000 small images are too few for a plain ViT from scratch.
    "vit_small_patch14": Recipe(
        architecture="vit_small_patch14_dinov2",
        model_args={"img_size": 84},
        sizes=((0.0, 84),),
        interpolation="bicubic",
        epochs=3,
        batch_size=64,
        lr=3e-4,
        layer_decay=0.7,
        clip_grad=1.0,
    ),
}
