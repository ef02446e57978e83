"""Weights that are not those of a plain model: the names of their tensors tell what was put on it, and the way out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from vitcompact.errors import CheckpointError, UsageError

_MERGE = "LoRA or other adapters that are not merged: merge them (peft: model.merge_and_unload()), and save that model"
# What a name looks like: what that means, and what to give instead.
_SIGNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(^|\.)lora_(A|B|embedding_[AB]|magnitude_vector)(\.|$)|\.base_layer\.|\.original_module\."), _MERGE),
    (
        re.compile(
            r"\.(SCB|weight_format|absmax|quant_map|qweight|qzeros|weight_scale|weight_packed)$|\.weight\.absmax"
        ),
        "quantised layers: give the checkpoint from before it was quantised",
    ),
    (
        re.compile(r"\.(weight|bias)_orig$"),
        "pruning masks beside the weights (weight_mask): make them permanent (torch.nn.utils.prune.remove)",
    ),
    (
        re.compile(r"\.parametrizations\.|\.weight_[gv]$(?<!last_layer\.weight_[gv])"),
        "parametrizations: take them off (torch.nn.utils.parametrize.remove_parametrizations), and save that",
    ),
    (
        re.compile(r"(^|\.)layers\.\d+\.ffn\.layers\.|(^|\.)stages\.\d+\.blocks\.\d+\.ffn\.layers\."),
        "the names of OpenMMLab's models, which are not read: give the checkpoint they were converted from, or timm's",
    ),
)
_ADAPTERS = "adapter_config.json"


def check_finished(names: Iterable[str], label: str) -> None:
    """Refuse tensors of which a plain model cannot be made.

    Args:
        names: of all tensors that are to become one model.
        label: what they were read from, for the message.

    Raises:
        CheckpointError: see above; it names the first, and what to do.
    """
    for name in names:
        for sign, meaning in _SIGNS:
            if sign.search(name):
                raise CheckpointError(f"{label} ({name}) has {meaning}")


def check_no_adapters(directory: Path) -> None:
    """Refuse a directory that holds adapters for a model instead of one.

    Raises:
        UsageError: it is.
    """
    if (directory / _ADAPTERS).is_file() and not (directory / "config.json").is_file():
        raise UsageError(f"{directory} ({_ADAPTERS}) has {_MERGE}")
