"""What an evaluation found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitcompact.options.evaluation import Probe
from vitcompact.utils.intervals import Interval
from vitcompact.utils.text import fields, pairs_html


@dataclass(frozen=True)
class EvalResult:
    """Scores over `num_samples` images; None marks what was not, or could not be, measured.

    Attributes:
        num_samples: images seen.
        top1: percent of the labelled images whose first guess is right; with a probe, the probe's.
        top5: percent whose first five guesses (all of them, of fewer classes) hold the right one.
        agreement: fraction of images with the same first guess as the reference.
        cosine: mean cosine between the logits of both models; of a model without a head, between the pooled features.
        patch_cosine: mean cosine between the patch tokens of both models.
        neighbour_agreement: fraction of images whose nearest other image, by cosine of the pooled features, is the
            same for both models.
        features: the model has no head, and features were compared.
        agreement_interval: 95 % interval of `agreement`.
        reference_top1, reference_top5: of the reference on the same images.
        top1_change_interval: 95 % interval of `top1_change`, from the images on which the two differ.
        probe: what read classes off the features, `knn` or `linear`; scores of classes are then its own.
        probe_samples: images that it was fitted to.
    """

    num_samples: int
    top1: float | None = None
    top5: float | None = None
    agreement: float | None = None
    cosine: float | None = None
    patch_cosine: float | None = None
    neighbour_agreement: float | None = None
    features: bool = False
    agreement_interval: Interval | None = None
    reference_top1: float | None = None
    reference_top5: float | None = None
    top1_change_interval: Interval | None = None
    probe: Probe | None = None
    probe_samples: int | None = None

    @property
    def top1_change(self) -> float | None:
        """Points of top-1 that the model has more than the reference."""
        return None if self.top1 is None or self.reference_top1 is None else self.top1 - self.reference_top1

    def _shown(self) -> dict[str, Any]:
        shown = {name: value for name, value in self.to_json().items() if not isinstance(value, (dict, list))}
        return {**shown, "reference_top1": self.reference_top1}

    def __repr__(self) -> str:
        return fields("EvalResult", **self._shown())

    def _repr_html_(self) -> str:
        return pairs_html("EvalResult", self._shown())

    def to_json(self) -> dict[str, Any]:
        """The keys of `eval --json`: scores of a classifier, or of a feature extractor.

        Beside a reference also `agreement_interval`, and with labels `reference` (its scores) and `change`. A probe
        adds the scores of a classifier to those of features, and `probe` (its name and `num_samples`).
        """
        names: tuple[str, ...]
        if self.features:
            names = ("cosine", "patch_cosine", "neighbour_agreement", "num_samples")
        else:
            names = ("top1", "top5", "num_samples", "agreement", "cosine")
        if self.probe is not None:
            names = ("top1", "top5", "agreement", *names)
        document = {name: getattr(self, name) for name in names}
        if self.probe is not None:
            document["probe"] = {"name": self.probe, "num_samples": self.probe_samples}
        if self.agreement_interval is not None:
            document["agreement_interval"] = list(self.agreement_interval)
        if self.reference_top1 is not None:
            document["reference"] = {"top1": self.reference_top1, "top5": self.reference_top5}
        if self.top1_change_interval is not None:
            document["change"] = {"top1": self.top1_change, "top1_interval": list(self.top1_change_interval)}
        return document
