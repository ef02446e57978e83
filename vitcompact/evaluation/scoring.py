"""What is accumulated batch by batch while models are compared: by their logits, their features, or probes of these."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from vitcompact.errors import DataError, UsageError
from vitcompact.evaluation.changed import Observer
from vitcompact.evaluation.probe import FittedProbe
from vitcompact.evaluation.result import EvalResult
from vitcompact.models.forward import features, logits
from vitcompact.models.scores import Mean, cosines, neighbour_agreement, same_guess, top_k_hits
from vitcompact.options.evaluation import Probe
from vitcompact.utils.intervals import Interval, paired_difference, wilson
from vitcompact.utils.processes import Processes

logger = logging.getLogger("vitcompact")

Features = tuple[Tensor, Tensor | None]
"""Pooled features and patch tokens."""


class LogitScores:
    """Scores of classifiers, by their logits."""

    def __init__(self, amp_dtype: torch.dtype | None, observer: Observer | None = None) -> None:
        self.amp_dtype, self.observer = amp_dtype, observer
        self.top1, self.top5, self.agreement, self.cosine = Mean(), Mean(), Mean(), Mean()
        self.reference_top1, self.reference_top5, self.gained, self.lost = Mean(), Mean(), Mean(), Mean()
        self.broken = 0

    def add(self, models: Sequence[nn.Module], images: Tensor, labels: Tensor | None) -> None:
        """A batch, seen by the model and, where there is one, the reference."""
        self.compare(images, labels, [logits(model, images, self.amp_dtype) for model in models])

    def compare(self, images: Tensor, labels: Tensor | None, outputs: Sequence[Tensor]) -> None:
        """The logits `(batch, classes)` of both models, or of one, for a batch."""
        output, target = outputs[0], outputs[1] if len(outputs) > 1 else None
        finite = torch.isfinite(output).all(dim=1)
        self.broken += int((~finite).sum())
        if target is not None:
            _check_same("logits", output, target)
            self.agreement.add(same_guess(output, target) & finite)
            self.cosine.add(cosines(output, target))
            if self.observer is not None:
                self.observer(images, output, target, labels)
        if labels is not None:
            self._score(output, target, labels.to(output.device))

    def _score(self, output: Tensor, target: Tensor | None, labels: Tensor) -> None:
        labelled = labels >= 0
        right = top_k_hits(output, labels, 1)[labelled]
        self.top1.add(right)
        self.top5.add(top_k_hits(output, labels, 5)[labelled])
        if target is not None:
            before = top_k_hits(target, labels, 1)[labelled]
            self.reference_top1.add(before)
            self.reference_top5.add(top_k_hits(target, labels, 5)[labelled])
            self.gained.add(right & ~before)
            self.lost.add(before & ~right)

    def result(self, num_samples: int) -> EvalResult:
        """What was found over so many images."""
        _warn_broken(self.broken, num_samples)
        return EvalResult(
            num_samples=num_samples,
            top1=self.top1.value(100),
            top5=self.top5.value(100),
            agreement=self.agreement.value(),
            cosine=self.cosine.value(),
            agreement_interval=_share_interval(self.agreement),
            reference_top1=self.reference_top1.value(100),
            reference_top5=self.reference_top5.value(100),
            top1_change_interval=self._change_interval(),
        )

    def total_over(self, processes: Processes) -> None:
        """From here on what was found over the images of all processes."""
        likeness, own = (self.agreement, self.cosine), (self.top1, self.top5)
        before = (self.reference_top1, self.reference_top5, self.gained, self.lost)
        for mean in (*likeness, *own, *before):
            mean.total_over(processes)
        self.broken = round(processes.sums(self.broken)[0])

    def _change_interval(self) -> Interval | None:
        if not self.gained.count:
            return None
        low, high = paired_difference(round(self.gained.total), round(self.lost.total), self.gained.count)
        return 100 * low, 100 * high


def _share_interval(hits: Mean) -> Interval | None:
    return wilson(round(hits.total), hits.count) if hits.count else None


class FeatureScores:
    """Scores of feature extractors beside a reference, by pooled features and patch tokens."""

    def __init__(self, amp_dtype: torch.dtype | None, observer: Observer | None = None) -> None:
        self.amp_dtype, self.observer = amp_dtype, observer
        self.cosine, self.patch_cosine = Mean(), Mean()
        self.pooled: tuple[list[Tensor], list[Tensor]] = ([], [])
        self.broken = 0

    def add(self, models: Sequence[nn.Module], images: Tensor, labels: Tensor | None) -> None:
        """A batch, seen by the model and the reference."""
        self.compare(images, labels, [features(model, images, self.amp_dtype) for model in models])

    def compare(self, images: Tensor, labels: Tensor | None, found: Sequence[Features]) -> None:
        """The pooled features and patch tokens of both models, or of one, for a batch."""
        pooled, patches = found[0]
        self.broken += int((~torch.isfinite(pooled).all(dim=1)).sum())
        if len(found) < 2:
            return
        target, target_patches = found[1]
        _check_same("pooled features", pooled, target)
        self.cosine.add(cosines(pooled, target))
        if patches is not None and target_patches is not None:
            _check_same("patch tokens", patches, target_patches)
            self.patch_cosine.add(cosines(patches, target_patches))
        if self.observer is not None:
            self.observer(images, pooled, target, labels)
        self.pooled[0].append(pooled.cpu())
        self.pooled[1].append(target.cpu())

    def total_over(self, processes: Processes) -> None:
        """From here on what was found over the images of all processes."""
        self.cosine.total_over(processes)
        self.patch_cosine.total_over(processes)
        self.broken = round(processes.sums(self.broken)[0])
        if processes.largest(len(self.pooled[0]))[0]:
            self.pooled = tuple([stacked(each, processes)] for each in self.pooled)  # type: ignore[assignment]

    def result(self, num_samples: int) -> EvalResult:
        """What was found over so many images."""
        _warn_broken(self.broken, num_samples)
        same = neighbour_agreement(torch.cat(self.pooled[0]), torch.cat(self.pooled[1])) if self.pooled[0] else None
        return EvalResult(
            num_samples=num_samples,
            cosine=self.cosine.value(),
            patch_cosine=self.patch_cosine.value(),
            neighbour_agreement=same,
            features=True,
        )


class ProbeScores:
    """Scores of features, and of the classes that a probe of each model reads off them."""

    def __init__(
        self, name: Probe, probes: Sequence[FittedProbe], amp_dtype: torch.dtype | None, observer: Observer | None
    ) -> None:
        self.name, self.probes, self.amp_dtype = name, probes, amp_dtype
        self.features, self.answers = FeatureScores(amp_dtype, observer), LogitScores(amp_dtype)
        self.labelled = 0

    def add(self, models: Sequence[nn.Module], images: Tensor, labels: Tensor | None) -> None:
        """A batch, seen by the model and, where there is one, the reference."""
        found = [features(model, images, self.amp_dtype) for model in models]
        self.features.compare(images, labels, found)
        places = None if labels is None else self.probes[0].places(labels)
        self.labelled += 0 if places is None else int((places >= 0).sum())
        scores = [probe.scores(pooled) for probe, (pooled, _) in zip(self.probes, found, strict=True)]
        self.answers.compare(images, places, scores)

    def total_over(self, processes: Processes) -> None:
        """From here on what was found over the images of all processes."""
        self.features.total_over(processes)
        self.answers.total_over(processes)
        self.labelled = round(processes.sums(self.labelled)[0])

    def result(self, num_samples: int) -> EvalResult:
        """What was found over so many images.

        Raises:
            DataError: none of them has a label.
        """
        if not self.labelled:
            raise DataError("the images to evaluate on have no labels: a probe is judged by them")
        seen, answers = self.features.result(num_samples), self.answers.result(num_samples)
        return replace(
            answers,
            cosine=seen.cosine,
            patch_cosine=seen.patch_cosine,
            neighbour_agreement=seen.neighbour_agreement,
            features=True,
            probe=self.name,
            probe_samples=self.probes[0].num_fitted,
        )


def stacked(batches: Sequence[Tensor], processes: Processes) -> Tensor:
    """Rows of batches one below the other, those of all processes."""
    return processes.stacked(torch.cat(list(batches)) if batches else torch.empty(0))


def _check_same(what: str, first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise UsageError(
            f"the {what} of the model and of the reference differ in shape: "
            f"{tuple(first.shape)} and {tuple(second.shape)}"
        )


def _warn_broken(broken: int, num_samples: int) -> None:
    if broken:
        logger.warning("outputs for %d of %d images are not finite: they count as wrong", broken, num_samples)
