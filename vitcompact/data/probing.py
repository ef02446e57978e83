"""Labelled images to fit a probe to, and others to judge it by, of the same classes."""

from __future__ import annotations

from torch import nn

from vitcompact.data.config import resolve_input
from vitcompact.data.evaluation import EvaluationBatches
from vitcompact.data.image_set import ImageSet, StreamSet
from vitcompact.data.open import open_dataset
from vitcompact.errors import DataError
from vitcompact.options.data import DataOptions


def probe_batches(
    model: nn.Module, fitted: DataOptions, judged: DataOptions
) -> tuple[EvaluationBatches, EvaluationBatches]:
    """The training split of `fitted` and the validation split of `judged`, prepared for `model`.

    Labels are those of the first; the second's classes are found among them by name. What the model's own head may
    call classes does not matter.

    Raises:
        DataError: nothing to open; images without labels; classes to judge by that the others do not have.
    """
    fit, judge = open_dataset(fitted, fitted.train_split), open_dataset(judged, judged.val_split)
    for images in (fit, judge):
        if isinstance(images, ImageSet) and not images.labelled:
            raise DataError(f"{images.description} has no classes: a `probe` needs labelled images, a folder a class")
    if len(fit.class_names) == 1:
        raise DataError(
            f"{fit.description} has one class only ({fit.class_names[0]}): a `probe` tells two or more apart"
        )
    _match(fit, judge)
    batches = (
        EvaluationBatches(images, resolve_input(model, options), options)
        for images, options in ((fit, fitted), (judge, judged))
    )
    first, second = batches
    return first, second


def _match(fit: ImageSet | StreamSet, judge: ImageSet | StreamSet) -> None:
    """Make the labels of `judge` those of `fit`, by the names of the classes where both have names.

    Raises:
        DataError: a class that is none of those fitted to.
    """
    if not fit.class_names or not judge.class_names:
        return
    known = {name: index for index, name in enumerate(fit.class_names)}
    if strange := [name for name in judge.class_names if name not in known]:
        raise DataError(
            f"{judge.description}: {len(strange)} of {len(judge.class_names)} classes ({strange[0]}) are not among "
            f"those that the probe is fitted to ({fit.description}): it cannot know them"
        )
    judge.label_map = tuple(known[name] for name in judge.class_names)
