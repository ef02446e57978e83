"""Class folders and the model's own classes: matched by name where both have names, so that labels never shift."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from vitcompact.data.image_set import ImageSet, StreamSet
from vitcompact.errors import DataError

logger = logging.getLogger("vitcompact")

_SHOWN = 3


def match_classes(dataset: ImageSet | StreamSet, model: Any) -> None:
    """Make the labels of `dataset` those of the model, by the names of the classes; warn where they may differ.

    Raises:
        DataError: some of the names are the model's, some are not, or two are one class.
    """
    num_classes = getattr(model, "num_classes", None)
    if not num_classes:
        return
    names, classes = dataset.class_names, class_names(model)
    if not names:
        if isinstance(dataset, ImageSet) and not dataset.labelled:
            logger.warning("%s has no classes: there are no labels to score", dataset.description)
        return
    found = [classes.get(_plain(name)) for name in names]
    known = [index for index in found if index is not None]
    if not known:
        _warn(dataset, num_classes, has_names=bool(classes))
        return
    strange = [name for name, index in zip(names, found, strict=True) if index is None]
    if strange:
        raise DataError(
            f"{dataset.description}: {len(strange)} of {len(names)} classes ({_some(strange)}) are none of the model's "
            f"({_some(list(classes))}): rename their folders, or pass a `class_map`"
        )
    if len(set(known)) < len(known):
        double = [name for name, index in zip(names, known, strict=True) if known.count(index) > 1]
        raise DataError(f"{dataset.description}: {_some(double)} are one class of the model: join their folders")
    if known != list(range(len(known))):
        logger.warning("%s: classes are matched by the model's class names, not by their order", dataset.description)
    dataset.label_map = tuple(known)


def matched_quietly(dataset: ImageSet | StreamSet, model: Any) -> None:
    """The same where every name is the model's; else nothing: labels that nobody may need are no reason to stop."""
    classes = class_names(model)
    found = [classes.get(_plain(name)) for name in dataset.class_names]
    known = tuple(index for index in found if index is not None)
    if known and len(set(known)) == len(found):
        dataset.label_map = known


def warn_number(dataset: ImageSet | StreamSet, model: Any) -> None:
    """Warn where a class map names another number of classes than the model has."""
    num_classes = getattr(model, "num_classes", None)
    if num_classes and dataset.class_names:
        _warn(dataset, num_classes, has_names=False)


def class_names(model: Any) -> dict[str, int]:
    """The model's classes by name, as its configuration tells; empty where it does not.

    `label_names` and `label_descriptions` of timm's `config.json`; of several names in one ("tench, Tinca tinca") each,
    where it is no other class's.
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    names = cfg.get("label_names")
    if not isinstance(names, Sequence) or isinstance(names, str) or len(names) != getattr(model, "num_classes", None):
        return {}
    descriptions = cfg.get("label_descriptions")
    described = descriptions if isinstance(descriptions, Mapping) else {}
    found = {_plain(name): index for index, name in enumerate(names)}
    if len(found) < len(names):
        return {}
    others: dict[str, set[int]] = {}
    for index, name in enumerate(names):
        for text in (str(described.get(name, "")), *str(name).split(","), *str(described.get(name, "")).split(",")):
            others.setdefault(_plain(text), set()).add(index)
    return {**{text: min(indices) for text, indices in others.items() if text and len(indices) == 1}, **found}


def names_to_show(model: Any, images: object = None) -> list[str]:
    """What the model's classes are called, in the order of its outputs; empty where nobody says.

    Args:
        images: batches of a labelled data set, whose own names do where the model has none and their number is right.
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    number, names = getattr(model, "num_classes", None), cfg.get("label_names")
    if isinstance(names, Sequence) and not isinstance(names, str) and len(names) == number:
        descriptions = cfg.get("label_descriptions")
        described = descriptions if isinstance(descriptions, Mapping) else {}
        return [str(described.get(name, name)).partition(",")[0] for name in names]
    own = getattr(images, "class_names", None) or ()
    return [str(name) for name in own] if len(own) == number else []


def _plain(name: object) -> str:
    return " ".join(str(name).casefold().replace("_", " ").replace("-", " ").split())


def _warn(dataset: ImageSet | StreamSet, num_classes: int, *, has_names: bool) -> None:
    found = len(dataset.class_names)
    if found != num_classes:
        logger.warning(
            "%s has %d classes, the model's head has %d: labels may not mean the same; `class_map` says which is which",
            dataset.description,
            found,
            num_classes,
        )
    elif has_names:
        logger.warning(
            "%s: no class (%s) has a name of the model's: they are taken in the order of their names; "
            "`class_map` says which is which",
            dataset.description,
            _some(list(dataset.class_names)),
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
