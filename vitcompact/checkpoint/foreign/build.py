"""A timm model of what another library's checkpoint holds."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from vitcompact.checkpoint.claims import check_numbers
from vitcompact.checkpoint.foreign.described import Described
from vitcompact.checkpoint.infer import meta_model
from vitcompact.checkpoint.matching import fill
from vitcompact.checkpoint.overrides import apply_overrides
from vitcompact.checkpoint.quiet import timm_errors
from vitcompact.data.described import check_described
from vitcompact.errors import CheckpointError, UsageError

logger = logging.getLogger("vitcompact")

_SLACK = 1 << 24
_TRIVIAL = ("index tables", "constants of its position encoding")


def build(
    described: Described,
    label: str,
    *,
    num_classes: int | None,
    image_size: tuple[int, int] | None,
    more: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The model with its weights, in training mode as timm leaves it.

    Args:
        described: the checkpoint.
        label: its name in messages.
        num_classes: a number of classes that was asked for.
        image_size: (height, width) in pixels that was asked for.
        more: further arguments of `timm.create_model`.

    Raises:
        UsageError: its trained head cannot be taken over and nothing was said about it.
        CheckpointError: the weights are not those of the described model.
    """
    if described.lost_head is not None:
        if num_classes is None:
            raise UsageError(f"{label}: {described.lost_head}; `num_classes=0` takes the model without it")
        logger.warning("%s: read without its classifier, for %s", label, described.lost_head)
    if described.resampled:
        logger.warning("%s: %s", label, described.resampled)
    for what, names in described.left_out.items():
        if what not in _TRIVIAL:
            logger.warning("%s: left out %s (%s)", label, what, _some(names))
    args = {**described.args, **(more or {})}
    if num_classes is not None:
        args["num_classes"] = num_classes
    if image_size is not None:
        args["img_size"] = image_size
    with timm_errors(CheckpointError, f"{label} describes no model that timm can build"):
        check_numbers(args, label)
        overlay = _overlay(described)
        check_described(overlay, label)
        _check_claim(described, args, label)
        model: nn.Module = timm.create_model(
            described.architecture, pretrained=False, pretrained_cfg_overlay=overlay, **args
        )
    apply_overrides(model, described.overrides)
    fill(model, described.tensors, base=described.architecture, label=label)
    return model


def _overlay(described: Described) -> dict[str, Any]:
    """What `pretrained_cfg` says of the checkpoint: what it is, as opposed to what the model shall be."""
    overlay = {"num_classes": described.num_classes, "custom_load": False, **described.prepare}
    size = described.args.get("img_size")
    channels = described.args.get("in_chans", 3)
    if size is not None:
        pair = (size, size) if isinstance(size, int) else tuple(size)
        overlay["input_size"] = (channels, *pair)
    if described.class_names and len(described.class_names) == described.num_classes:
        overlay["label_names"] = list(described.class_names)
    return overlay


def _check_claim(described: Described, args: Mapping[str, Any], label: str) -> None:
    """Refuse a configuration that asks for a model far larger than its weights, before there is memory for it."""
    claimed = sum(tensor.numel() for tensor in meta_model(described.architecture, **args).state_dict().values())
    held = sum(tensor.numel() for tensor in described.tensors.values())
    if claimed > 2 * held + _SLACK:
        raise CheckpointError(f"{label}: its configuration asks for {claimed:,} weights, its file has {held:,}")


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
