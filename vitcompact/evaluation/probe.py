"""Probes: classes read off frozen features, by the nearest neighbours or by a linear layer.

Both are fitted to each model's own features, so that a model is not blamed for features that only look different.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitcompact.errors import DataError, UsageError
from vitcompact.options.evaluation import Probe

TEMPERATURE = 0.07
"""Of the votes of neighbours, as in DINO."""
CHUNK = 1024
"""Images whose similarities to all fitted ones are held at once."""
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Squared weights of the linear layer count so much beside the mean cross-entropy; the best on held-out images does."""
HELD_OUT = 5
"""One image in so many is held out to choose the penalty."""
ITERATIONS = 200


@dataclass(frozen=True)
class FittedProbe(ABC):
    """A probe of one model's features.

    Attributes:
        classes: int64 (classes,), ascending: the labels that it knows.
        num_fitted: images that it was fitted to.
    """

    classes: Tensor
    num_fitted: int

    @abstractmethod
    def scores(self, features: Tensor) -> Tensor:
        """Float64 (images, classes) of pooled features (images, channels): the larger, the likelier."""

    def places(self, labels: Tensor) -> Tensor:
        """Columns of `scores` that labels stand for, -1 for none.

        Raises:
            DataError: a label that the probe was not fitted to.
        """
        found = torch.searchsorted(self.classes, labels.cpu().contiguous()).clamp_(max=len(self.classes) - 1)
        known = self.classes[found] == labels.cpu()
        if strange := labels.cpu()[~known & (labels.cpu() >= 0)].unique().tolist():
            raise DataError(
                f"the probe was fitted to {len(self.classes)} classes, and class {strange[0]} is none of them: fit it "
                "to images of all classes (`probe_images`)"
            )
        return torch.where(known, found, -1)


@dataclass(frozen=True)
class Neighbours(FittedProbe):
    """Votes of the `k` most similar fitted images, weighted by `exp(cosine / 0.07)` (DINO, arXiv 2104.14294)."""

    unit: Tensor
    places_fitted: Tensor
    k: int

    def scores(self, features: Tensor) -> Tensor:
        """See `FittedProbe.scores`: shares of the votes."""
        return torch.cat([self._votes(part) for part in features.split(CHUNK)])

    def _votes(self, features: Tensor) -> Tensor:
        similarity, nearest = (_unit(features) @ self.unit.T).topk(self.k, dim=1)
        votes = torch.zeros(len(features), len(self.classes), dtype=torch.float64)
        votes.scatter_add_(1, self.places_fitted[nearest], ((similarity - 1) / TEMPERATURE).exp())
        return votes


@dataclass(frozen=True)
class Linear(FittedProbe):
    """Multinomial logistic regression on standardised features."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """See `FittedProbe.scores`: logits."""
        return ((features.cpu().double() - self.mean) / self.scale) @ self.weight + self.bias


def fitted_probe(probe: Probe, features: Tensor, labels: Tensor, k: int) -> FittedProbe:
    """Fit a probe.

    Args:
        features: pooled, (images, channels).
        labels: int64 (images,); images with negative ones are left out.
        k: neighbours of `knn`.

    Raises:
        DataError: no labels, one class, or features that are not finite.
        UsageError: more neighbours than images.
    """
    labels = labels.cpu()
    features, labels = features.cpu().double()[labels >= 0], labels[labels >= 0]
    if not len(labels):
        raise DataError("the images that the probe is fitted to (`probe_images`) have no labels")
    classes, places = labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise DataError(
            "the images that the probe is fitted to (`probe_images`) are all of one class: give two or more"
        )
    if broken := int((~torch.isfinite(features).all(dim=1)).sum()):
        raise DataError(
            f"features of {broken} of {len(features)} images are not finite: no probe can be fitted to them"
        )
    if probe == "knn":
        check_k(k, len(labels))
        return Neighbours(classes, len(labels), _unit(features), places, k)
    mean, scale = features.mean(dim=0), features.std(dim=0, correction=0).clamp(min=1e-6)
    weight, bias = _logistic((features - mean) / scale, places, len(classes))
    return Linear(classes, len(labels), mean, scale, weight, bias)


def check_k(k: int, num_images: int) -> None:
    """Refuse more neighbours than there are.

    Raises:
        UsageError: see above.
    """
    if k > num_images:
        raise UsageError(f"`probe_k={k}`: there are only {num_images} labelled images to be neighbours; give fewer")


def check_probe(probe: Probe | None, probe_images: Any, k: int) -> None:
    """Refuse a probe without images to fit it to, and images without a probe.

    Raises:
        UsageError: see above, and too few images where their number is known.
    """
    if probe is None:
        if probe_images is not None:
            raise UsageError("`probe_images` are what a probe is fitted to: say which by `probe`")
        return
    if probe not in ("knn", "linear"):
        raise UsageError(f"`probe` takes 'knn' or 'linear', got {probe!r}")
    if probe_images is None:
        raise UsageError(f"`probe='{probe}'` is fitted to labelled images: give `probe_images`")
    pair = isinstance(probe_images, (tuple, list)) and len(probe_images) == 2 and isinstance(probe_images[1], Tensor)
    known = len(probe_images[1]) if pair else getattr(probe_images, "num_samples", None)
    if probe == "knn" and isinstance(known, int):
        check_k(k, known)


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.cpu().double(), dim=1)


def _logistic(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Weight (channels, classes) and bias (classes,), with the penalty that does best on held-out images."""
    held = torch.arange(len(labels)) % HELD_OUT == HELD_OUT - 1
    if not held.any():
        return _minimised(features, labels, num_classes, PENALTIES[len(PENALTIES) // 2])

    def loss(penalty: float) -> float:
        weight, bias = _minimised(features[~held], labels[~held], num_classes, penalty)
        return float(F.cross_entropy(features[held] @ weight + bias, labels[held]))

    return _minimised(features, labels, num_classes, min(PENALTIES, key=loss))


@torch.enable_grad()
def _minimised(features: Tensor, labels: Tensor, num_classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """The minimum of mean cross-entropy and `penalty / 2 * |weight|^2`, which is one: the problem is convex."""
    weight = torch.zeros(features.shape[1], num_classes, dtype=features.dtype, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=features.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weight + bias, labels) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()
