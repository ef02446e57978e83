"""Top-1 and top-5, and how closely a model follows a reference; features where there is no head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from vitcompact.data import check_images, check_weights
from vitcompact.errors import DataError, UsageError
from vitcompact.evaluation.changed import Observer
from vitcompact.evaluation.probe import FittedProbe, check_probe, fitted_probe
from vitcompact.evaluation.result import EvalResult
from vitcompact.evaluation.scoring import FeatureScores, LogitScores, ProbeScores, stacked
from vitcompact.models.forward import eval_mode, features, num_classes
from vitcompact.options.evaluation import PROBE_K, Probe
from vitcompact.utils.processes import ALONE, Processes
from vitcompact.utils.progress import Progress, notebooks

Batches = Iterable[Tensor] | Iterable[tuple[Tensor, Tensor]]


def evaluate(
    model: nn.Module,
    images: Tensor | tuple[Tensor, Tensor] | Batches,
    labels: Tensor | None = None,
    *,
    reference: nn.Module | None = None,
    probe: Probe | None = None,
    probe_images: tuple[Tensor, Tensor] | Batches | None = None,
    probe_k: int = PROBE_K,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    amp_dtype: torch.dtype | None = None,
    progress: Progress = notebooks,
    observer: Observer | None = None,
    processes: Processes = ALONE,
) -> EvalResult:
    """Score `model` on labelled images, and against `reference` on the same images.

        vitcompact.evaluate(model, images, labels).top1
        vitcompact.evaluate(model, loader, reference=original).agreement
        vitcompact.evaluate(model, loader, reference=original, probe="knn", probe_images=training_loader).top1

    Both models are moved to `device` and keep their train or eval mode.

    Args:
        model: a timm module; one without a head (`num_classes` 0) needs a reference or a probe, and features are
            compared.
        images: normalised images (n, channels, height, width), or any iterable of batches (a `DataLoader`), each of
            images or of `(images, labels)`; batches are read once and not kept. One pair `(images, labels)` does too.
        labels: int64 (n,) of a tensor of images, negative for none; batches bring their own.
        reference: the model to compare with, usually the one that `model` was made from.
        probe: score the classes that `knn` (votes of the nearest neighbours) or `linear` (logistic regression) read
            off the pooled features of each model, instead of the model's own outputs.
        probe_images: labelled images that the probe is fitted to, others than those to score; pairs as above.
        probe_k: neighbours of `knn`.
        batch_size: images a pass, of a tensor; batches are taken as they come.
        device: where both run.
        amp_dtype: automatic mixed precision, e.g. `torch.bfloat16`.
        progress: told of each batch.
        processes: those of a run that torchrun started (`utils.processes.joined`), each of which calls this function
            with its own part of the images (`data.EvaluationBatches.shared`), and gets the result for all of them.
        observer: told of each batch and both models' outputs, where there is a reference; `MostChanged` is one.

    Raises:
        UsageError: no head, no reference and no probe; outputs of both that cannot be compared; what are no images; or
            more neighbours than images.
        DataError: no images, images that the model does not take, or a probe without labels, with one class only, or
            asked for classes that it was not fitted to.
    """
    batches = as_pairs(images, labels, batch_size)
    fitted_to = None if probe_images is None else as_pairs(probe_images, None, batch_size)
    check_probe(probe, probe_images, probe_k)
    _check_heads(model, reference, probe)
    for each, name in ((model, "model"), (reference, "reference")):
        if each is not None:
            check_weights(each, name)
    device = torch.device(device)
    models = [m.to(device) for m in (model, reference) if m is not None]
    scorer: LogitScores | FeatureScores | ProbeScores
    if probe is not None and fitted_to is not None:
        probes = _fitted(models, fitted_to, probe, probe_k, amp_dtype, device, progress, processes)
        scorer = ProbeScores(probe, probes, amp_dtype, observer)
    else:
        scorer = (LogitScores if num_classes(model) else FeatureScores)(amp_dtype, observer)
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
    scorer.total_over(processes)
    seen = round(processes.sums(seen)[0])
    if not seen:
        raise DataError("no images to evaluate on")
    return scorer.result(seen)


def _fitted(
    models: Sequence[nn.Module],
    batches: Batches,
    probe: Probe,
    k: int,
    amp_dtype: torch.dtype | None,
    device: torch.device,
    progress: Progress,
    processes: Processes,
) -> list[FittedProbe]:
    """A probe of each model's own features."""
    pooled: list[list[Tensor]] = [[] for _ in models]
    kept: list[Tensor] = []
    progress.start("fit the probe", getattr(batches, "num_batches", None) or _length(batches))
    with eval_mode(*models), torch.inference_mode():
        for batch, labels in _pairs(batches):
            if not kept:
                check_images(models[0], batch)
            kept.append(torch.full((len(batch),), -1) if labels is None else labels.cpu())
            for found, model in zip(pooled, models, strict=True):
                found.append(features(model, batch.to(device), amp_dtype)[0].cpu())
            progress.advance()
    progress.finish()
    if not processes.largest(len(kept))[0]:
        raise DataError("no images to fit the probe to")
    labels = stacked(kept, processes).to(torch.int64)
    return [fitted_probe(probe, stacked(found, processes), labels, k) for found in pooled]


def _check_heads(model: nn.Module, reference: nn.Module | None, probe: Probe | None) -> None:
    own = num_classes(model)
    if probe is not None:
        for each in (model, reference):
            if each is not None and num_classes(each) and not hasattr(each, "forward_features"):
                raise UsageError("a `probe` needs features, and this model gives nothing but its classes")
        return
    if reference is None:
        if not own:
            raise UsageError(
                "this model has no head, so there is nothing to score alone: pass a `reference` or a `probe`"
            )
        return
    other = num_classes(reference)
    if own != other:
        raise UsageError(f"the model has {own} classes and the reference {other}: they cannot be compared")


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
