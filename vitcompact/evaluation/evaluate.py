"""Top-1 and top-5, and how closely a model follows a reference; features where there is no head."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from vitcompact.data import check_images
from vitcompact.errors import DataError, UsageError
from vitcompact.evaluation.changed import Observer
from vitcompact.evaluation.result import EvalResult
from vitcompact.models.forward import eval_mode, features, logits, num_classes
from vitcompact.models.scores import Mean, cosines, neighbour_agreement, same_guess, top_k_hits
from vitcompact.utils.intervals import Interval, paired_difference, wilson
from vitcompact.utils.progress import Progress, notebooks

logger = logging.getLogger("vitcompact")

Batches = Iterable[Tensor] | Iterable[tuple[Tensor, Tensor]]


def evaluate(
    model: nn.Module,
    images: Tensor | tuple[Tensor, Tensor] | Batches,
    labels: Tensor | None = None,
    *,
    reference: nn.Module | None = None,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    amp_dtype: torch.dtype | None = None,
    progress: Progress = notebooks,
    observer: Observer | None = None,
) -> EvalResult:
    """Score `model` on labelled images, and against `reference` on the same images.

        vitcompact.evaluate(model, images, labels).top1
        vitcompact.evaluate(model, loader, reference=original).agreement

    Both models are moved to `device` and keep their train or eval mode.

    Args:
        model: a timm module; one without a head (`num_classes` 0) needs a reference, and features are compared.
        images: normalised images (n, channels, height, width), or any iterable of batches (a `DataLoader`), each of
            images or of `(images, labels)`; batches are read once and not kept. One pair `(images, labels)` does too.
        labels: int64 (n,) of a tensor of images, negative for none; batches bring their own.
        reference: the model to compare with, usually the one that `model` was made from.
        batch_size: images a pass, of a tensor; batches are taken as they come.
        device: where both run.
        amp_dtype: automatic mixed precision, e.g. `torch.bfloat16`.
        progress: told of each batch.
        observer: told of each batch and both models' outputs, where there is a reference; `MostChanged` is one.

    Raises:
        UsageError: no head and no reference; outputs of both that cannot be compared; or what are no images.
        DataError: no images, or images that the model does not take.
    """
    batches = as_pairs(images, labels, batch_size)
    _check_heads(model, reference)
    device = torch.device(device)
    scorer = (_LogitScores if num_classes(model) else _FeatureScores)(amp_dtype, observer)
    models = [m.to(device) for m in (model, reference) if m is not None]
    seen = 0
    progress.start("evaluate", getattr(images, "num_batches", None) or _length(batches))
    with eval_mode(*models), torch.inference_mode():
        for batch, wanted in _pairs(batches):
            if not seen:
                check_images(model, batch)
            scorer.add(models, batch.to(device), wanted)
            seen += len(batch)
            progress.advance(1, f"{seen} images")
    progress.finish()
    if not seen:
        raise DataError("no images to evaluate on")
    return scorer.result(seen)


class _LogitScores:
    def __init__(self, amp_dtype: torch.dtype | None, observer: Observer | None = None) -> None:
        self.amp_dtype, self.observer = amp_dtype, observer
        self.top1, self.top5, self.agreement, self.cosine = Mean(), Mean(), Mean(), Mean()
        self.reference_top1, self.reference_top5, self.gained, self.lost = Mean(), Mean(), Mean(), Mean()
        self.broken = 0

    def add(self, models: list[nn.Module], images: Tensor, labels: Tensor | None) -> None:
        output = logits(models[0], images, self.amp_dtype)
        finite = torch.isfinite(output).all(dim=1)
        self.broken += int((~finite).sum())
        target = logits(models[1], images, self.amp_dtype) if len(models) > 1 else None
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

    def _change_interval(self) -> Interval | None:
        if not self.gained.count:
            return None
        low, high = paired_difference(round(self.gained.total), round(self.lost.total), self.gained.count)
        return 100 * low, 100 * high


def _share_interval(hits: Mean) -> Interval | None:
    return wilson(round(hits.total), hits.count) if hits.count else None


class _FeatureScores:
    def __init__(self, amp_dtype: torch.dtype | None, observer: Observer | None = None) -> None:
        self.amp_dtype, self.observer = amp_dtype, observer
        self.cosine, self.patch_cosine = Mean(), Mean()
        self.pooled: tuple[list[Tensor], list[Tensor]] = ([], [])
        self.broken = 0

    def add(self, models: list[nn.Module], images: Tensor, labels: Tensor | None) -> None:
        pooled, patches = features(models[0], images, self.amp_dtype)
        target, target_patches = features(models[1], images, self.amp_dtype)
        _check_same("pooled features", pooled, target)
        self.broken += int((~torch.isfinite(pooled).all(dim=1)).sum())
        self.cosine.add(cosines(pooled, target))
        if patches is not None and target_patches is not None:
            _check_same("patch tokens", patches, target_patches)
            self.patch_cosine.add(cosines(patches, target_patches))
        if self.observer is not None:
            self.observer(images, pooled, target, labels)
        self.pooled[0].append(pooled.cpu())
        self.pooled[1].append(target.cpu())

    def result(self, num_samples: int) -> EvalResult:
        _warn_broken(self.broken, num_samples)
        return EvalResult(
            num_samples=num_samples,
            cosine=self.cosine.value(),
            patch_cosine=self.patch_cosine.value(),
            neighbour_agreement=neighbour_agreement(torch.cat(self.pooled[0]), torch.cat(self.pooled[1])),
            features=True,
        )


def _check_heads(model: nn.Module, reference: nn.Module | None) -> None:
    own = num_classes(model)
    if reference is None:
        if not own:
            raise UsageError("this model has no head, so there is nothing to score alone: pass a `reference`")
        return
    other = num_classes(reference)
    if own != other:
        raise UsageError(f"the model has {own} classes and the reference {other}: they cannot be compared")


def _check_same(what: str, first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise UsageError(
            f"the {what} of the model and of the reference differ in shape: "
            f"{tuple(first.shape)} and {tuple(second.shape)}"
        )


def _warn_broken(broken: int, num_samples: int) -> None:
    if broken:
        logger.warning("outputs for %d of %d images are not finite: they count as wrong", broken, num_samples)


def _pairs(batches: Batches) -> Iterator[tuple[Tensor, Tensor | None]]:
    for batch in batches:
        if isinstance(batch, Tensor):
            yield batch, None
        else:
            yield batch[0], batch[1]


def as_pairs(images: Tensor | tuple[Tensor, Tensor] | Batches, labels: Tensor | None, batch_size: int) -> Batches:
    """What `evaluate` was given, as batches: tensors are split, anything else comes as it is.

    Raises:
        UsageError: labels that do not go with the images.
    """
    if isinstance(images, (tuple, list)) and len(images) == 2 and _is_labels(images[1]) and labels is None:
        images, labels = images[0], images[1]
    if isinstance(images, Tensor):
        if labels is None:
            return images.split(batch_size)
        if not isinstance(labels, Tensor) or labels.shape != images.shape[:1]:
            got = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise UsageError(f"labels must be a tensor ({len(images)},), one for each of the images, got {got}")
        return list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
    if labels is not None:
        raise UsageError("labels go with one tensor of images; batches bring their own: (images, labels) each")
    if isinstance(images, (str, bytes)) or not isinstance(images, Iterable):
        raise UsageError(f"images must be a tensor (n, 3, height, width) or batches, got {type(images).__name__}")
    return images


def _is_labels(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 1


def _length(batches: object) -> int | None:
    return len(batches) if hasattr(batches, "__len__") else None
