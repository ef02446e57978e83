"""What a checkpoint of another library is, said in timm's terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vitcompact.checkpoint.foreign.config import Config
from vitcompact.checkpoint.overrides import Override

Tensors = dict[str, Tensor]
Size = tuple[int, int] | None


@dataclass(frozen=True)
class Described:
    """A checkpoint of another library as a timm model.

    Attributes:
        architecture: timm name whose class and description fit best.
        args: arguments of `timm.create_model`, complete: nothing hangs on what the name implies.
        tensors: weights under timm's names.
        num_classes: outputs of the trained head, 0 for none.
        left_out: weights that the timm model has no place for, by what they are.
        prepare: mean, std, interpolation, crop_pct and crop_mode, as `pretrained_cfg` names them.
        overrides: settings that the arguments cannot say.
        lost_head: why the trained head cannot be taken over; such a model is read without a head or with a new one.
        resampled: what was fitted to the size of the images, as the library itself does; None for nothing.
        class_names: in the order of the outputs; empty where the checkpoint does not say.
    """

    architecture: str
    args: Mapping[str, Any]
    tensors: Tensors
    num_classes: int
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    prepare: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[Override, ...] = ()
    lost_head: str | None = None
    resampled: str | None = None
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """How one library writes one kind of model.

    Attributes:
        title: for messages.
        model_types: values of `model_type` in `config.json`.
        describe: reads configuration and weights; the size (height, width) is that of the images to come, None where
            nothing but the configuration says it.
        prepare: preparation of images that the library uses where the checkpoint does not say.
    """

    title: str
    model_types: tuple[str, ...]
    describe: Callable[[Config, Tensors, Size], Described]
    prepare: Mapping[str, Any]
