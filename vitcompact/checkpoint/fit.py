"""A weights file and an architecture: which of its state dicts, under which names, with which arguments."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from vitcompact.checkpoint.boxes import StateDict, choose_key
from vitcompact.checkpoint.convert import Layout, to_layout
from vitcompact.checkpoint.extras import (
    check_classifier,
    check_pooling,
    check_representation,
    split_extras,
    with_bias,
    with_classifier,
    without_classifier,
)
from vitcompact.checkpoint.facts import Facts
from vitcompact.checkpoint.implied import implied_args
from vitcompact.checkpoint.infer import meta_model
from vitcompact.checkpoint.read import Weights
from vitcompact.checkpoint.unfinished import check_finished
from vitcompact.errors import CheckpointError, UsageError
from vitcompact.utils.text import some

logger = logging.getLogger("vitcompact")
_ENOUGH = 0.5  # share of an architecture's names from which a state dict counts as one of its
_OPENAI = ("input_resolution", "context_length", "vocab_size")  # numbers that only OpenAI's CLIP archives hold


@dataclass(frozen=True)
class Fitted:
    """What a file turned out to be.

    Attributes:
        state_dict: its weights by timm's names.
        args: arguments of `timm.create_model` that the file implies or records.
        key: where in the file the weights are.
        left_out: what was not taken, for a message.
    """

    state_dict: StateDict
    args: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    left_out: str = ""


def fit(weights: Weights, name: str, base: str, given: Mapping[str, Any], facts: Facts, *, headless: bool) -> Fitted:
    """Find the weights of an architecture in a file.

    Args:
        weights: the file.
        name: timm name of the architecture, perhaps with a tag.
        base: the same without it.
        given: arguments that were asked for, which beat those recorded.
        facts: what is recorded of the model.
        headless: no classifier is wanted, so that none needs to be kept.

    Raises:
        UsageError: there are several that would do.
        CheckpointError: the classifier cannot be kept, or the pooling is not told.
    """
    label = str(weights.path)
    _check_blocks({**facts.args, **given}, weights, label)
    model = meta_model(name, **{key: value for key, value in given.items() if key != "global_pool"})
    key, layout = _best_layout(weights, base, model, label)
    check_finished(weights.boxes[key], label)
    layout = with_classifier(layout, model)
    recorded = {key: value for key, value in facts.args.items() if key not in _SHAPES}
    known = {**_by_origin(weights.boxes[key]), **_accepted_facts(name, recorded), **given}
    args = implied_args(layout.state_dict, name, known, facts.args.get("img_size"), weights.boxes[key])
    model = meta_model(name, **args)
    if headless:
        layout = without_classifier(layout, model)
    if not headless:
        check_representation(layout, model, label)
    kept, left_out = split_extras(layout, model)
    check_classifier(kept, model, label)
    check_pooling(kept, model, label)
    return Fitted(with_bias(kept, model), args, key, left_out)


def _check_blocks(args: Mapping[str, Any], weights: Weights, label: str) -> None:
    """Raises CheckpointError for more blocks than there are tensors: building them takes seconds, again and again."""
    depths = args.get("depth", args.get("depths", 0))
    told = [each for each in (depths if isinstance(depths, (list, tuple)) else [depths]) if isinstance(each, int)]
    most = max(map(len, weights.boxes.values()), default=0)
    if sum(told) > max(most, _FEW_BLOCKS):
        raise CheckpointError(
            f"{label} holds {most} tensors, and is said to have {sum(told)} blocks: correct its depth"
        )


_FEW_BLOCKS = 64
_MOST_BOXES = 256
_SHAPES = ("num_classes", "in_chans", "img_size")
"""What the weights tell themselves."""


def _best_layout(weights: Weights, base: str, model: nn.Module, label: str) -> tuple[str, Layout]:
    if len(weights.boxes) > _MOST_BOXES:
        choose_key(weights.boxes, label)  # which says how many there are
    layouts = {key: to_layout(box, base, model) for key, box in weights.boxes.items()}
    most = max(layout.share for layout in layouts.values())
    keys = [key for key, layout in layouts.items() if layout.share >= max(_ENOUGH, 0.9 * most)]
    if not keys:  # of another architecture: the largest shows best in what it differs
        keys = [max(layouts, key=lambda key: (layouts[key].share, len(layouts[key].state_dict)))]
    key = choose_key(keys, label)
    layout = layouts[key]
    if layout.rivals and layout.share >= _ENOUGH:
        dot = f"{key}." if key else ""
        names = [f"`state_key='{dot}{prefix.rstrip('.')}'`" for prefix in (layout.prefix, *layout.rivals)]
        raise UsageError(f"{label} holds several models; say which: {some(names)}")
    if len(keys) > 1:
        logger.warning("%s holds %s: %s is taken", label, ", ".join(sorted(keys)), key)
    return key, layout


def _accepted_facts(name: str, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded arguments that this architecture takes; the others are named."""
    with suppress(Exception):  # as they were recorded: a width alone may not divide among the usual number of heads
        meta_model(name, **recorded)
        return dict(recorded)
    accepted: dict[str, Any] = {}
    for key, value in recorded.items():
        try:
            meta_model(name, **{**accepted, key: value})
        except Exception as error:  # of another architecture, or another release of timm
            logger.warning("recorded %s=%r is not used: %s does not take it (%s)", key, value, name, error)
        else:
            accepted[key] = value
    return accepted


def _by_origin(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments that no tensor tells but the file's origin does: OpenAI's CLIP computes an approximate GELU."""
    return {"act_layer": "quick_gelu"} if all(name in state_dict for name in _OPENAI) else {}
