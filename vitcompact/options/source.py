"""How a model is read."""

from __future__ import annotations

from dataclasses import dataclass

from vitcompact.options.declare import MODEL, check_limits, option
from vitcompact.options.shared import Seeded


@dataclass(frozen=True)
class SourceOptions(Seeded):
    """How to read a SOURCE.

    Attributes:
        num_classes: another number than the checkpoint's leaves the classifier untrained.
        img_size: side, or (height, width), in pixels; position embeddings are resampled as timm does.
    """

    model: str | None = option(
        None, "timm architecture of a bare weights file.", panel=MODEL, unit="NAME", unset="as the file says"
    )
    num_classes: int | None = option(
        None, "Classes of the classification head.", panel=MODEL, unit="N", unset="as in the weights", least=0
    )
    img_size: int | tuple[int, int] | None = option(
        None, "Side of the square input in pixels.", panel=MODEL, unit="PIXELS", unset="the model's own", least=1
    )
    random_weights: bool = option(
        False, "Untrained weights for a timm name: to try things without a download.", panel=MODEL
    )

    def __post_init__(self) -> None:
        check_limits(self)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """`img_size` as (height, width) in pixels."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size
