"""What an evaluation found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitcompact.utils.text import fields


@dataclass(frozen=True)
class EvalResult:
    """Scores over `num_samples` images; None marks what was not, or could not be, measured.

    Attributes:
        num_samples: images seen.
        top1: percent of the labelled images whose first guess is right.
        top5: percent whose first five guesses (all of them, of fewer classes) hold the right one.
        agreement: fraction of images with the same first guess as the reference.
        cosine: mean cosine between the logits of both models; of a model without a head, between the pooled features.
        patch_cosine: mean cosine between the patch tokens of both models.
        neighbour_agreement: fraction of images whose nearest other image, by cosine of the pooled features, is the
            same for both models.
        features: the model has no head, and features were compared.
    """

    num_samples: int
    top1: float | None = None
    top5: float | None = None
    agreement: float | None = None
    cosine: float | None = None
    patch_cosine: float | None = None
    neighbour_agreement: float | None = None
    features: bool = False

    def __repr__(self) -> str:
        return fields("EvalResult", **self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The keys of `eval --json`: scores of a classifier, or of a feature extractor."""
        names: tuple[str, ...]
        if self.features:
            names = ("cosine", "patch_cosine", "neighbour_agreement", "num_samples")
        else:
            names = ("top1", "top5", "num_samples", "agreement", "cosine")
        return {name: getattr(self, name) for name in names}
