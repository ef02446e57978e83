"""How a model is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitcompact.errors import UsageError
from vitcompact.options.declare import MODEL, check_limits, option
from vitcompact.options.shared import Seeded


@dataclass(frozen=True)
class SourceOptions(Seeded):
    """How to read a SOURCE.

    Attributes:
        num_classes: another number than the checkpoint's leaves the classifier untrained.
        img_size: side, or (height, width), in pixels; position embeddings are resampled as timm does.
        model_kwargs, global_pool: what a bare file does not tell; they beat what is recorded.
    """

    model: str | None = option(
        None, "timm architecture of a bare weights file.", panel=MODEL, unit="NAME", unset="as the file says"
    )
    num_classes: int | None = option(
        None,
        "Classes of the classification head.",
        panel=MODEL,
        unit="N",
        unset="as in the weights",
        least=0,
        rare=True,
    )
    img_size: int | tuple[int, int] | None = option(
        None, "Side of the square input in pixels.", panel=MODEL, unit="PIXELS", unset="the model's own", least=1
    )
    input_size: tuple[int, ...] | None = option(
        None,
        "Channels, height and width of the input, instead of `in_chans` and `img_size`.",
        panel=MODEL,
        unit="C,H,W",
        unset="the model's own",
        items=int,
        least=1,
        rare=True,
    )
    in_chans: int | None = option(
        None, "Channels of the input.", panel=MODEL, unit="N", unset="as in the weights", least=1, rare=True
    )
    global_pool: str | None = option(
        None,
        "How features become one vector: avg, token, map and others.",
        panel=MODEL,
        unit="NAME",
        unset="as recorded, or the architecture's",
        spelled=("global_pool", "gp"),
        rare=True,
    )
    model_kwargs: Mapping[str, Any] | None = option(
        None,
        "More arguments of the architecture, such as reg_tokens=4 fc_norm=False.",
        panel=MODEL,
        unit="KEY=VALUE",
        unset="as recorded, or read off the weights",
        pairs=True,
        rare=True,
    )
    state_key: str | None = option(
        None,
        "Which of several models in a weights file: the key of its state dict, or what its names begin with.",
        panel=MODEL,
        unit="KEY",
        rare=True,
    )
    random_weights: bool = option(
        False, "Untrained weights for a timm name: to try things without a download.", panel=MODEL
    )

    def __post_init__(self) -> None:
        check_limits(self)
        if self.input_size is not None and len(self.input_size) != 3:
            raise UsageError(f"`input_size` takes channels, height and width, got {len(self.input_size)} numbers")
        for name, value in (("img_size", self.img_size), ("in_chans", self.in_chans)):
            if self.input_size is not None and value is not None:
                raise UsageError(f"`input_size` says what `{name}` says: give one of the two")

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width in pixels that were asked for."""
        if self.input_size is not None:
            return self.input_size[1], self.input_size[2]
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def channels(self) -> int | None:
        """Channels that were asked for."""
        return self.input_size[0] if self.input_size is not None else self.in_chans
