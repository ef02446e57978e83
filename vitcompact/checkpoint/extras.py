"""What a file holds besides a model: buffers that models make themselves, and what pre-training needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vitcompact.checkpoint.boxes import StateDict
from vitcompact.checkpoint.convert import Layout
from vitcompact.errors import CheckpointError

# Buffers that follow from the sizes of a model, and counters of profilers.
_COMPUTED = ("relative_position_index", "relative_coords_table", "attn_mask", "total_ops", "total_params", "periods")
# Parts that change what a Vision Transformer computes: a file that has them beyond its architecture is of another one.
_PARTS = {
    *("cls_token", "dist_token", "reg_token", "register_tokens", "storage_tokens", "pos_embed", "patch_embed", "stem"),
    *(
        "norm",
        "fc_norm",
        "norm_pre",
        "attn_pool",
        "blocks",
        "layers",
        "stages",
        "rel_pos_bias",
        "rope",
        "absolute_pos_embed",
    ),
    *("head", "head_dist", "fc", "classifier", "adapter", "adapters", "prompt", "prompts", "prompt_embeddings"),
}
_LONE = (
    "mask_token",
    "logit_scale",
    "logit_bias",
    "queue",
    "queue_ptr",
    "center",
    "temperature",
    "step",
    "initted",
    "n_averaged",
)
_REPRESENTATION = "pre_logits."
_CLASSIFIERS = ("head", "fc", "classifier", "linear")
_PRETRAINING = ("decoder", "lm_head.")
_SHOWN, _SHOWN_GROUPS = 4, 12


def split_extras(layout: Layout, model: nn.Module) -> tuple[StateDict, str]:
    """The tensors of a layout that concern `model`, and what else there is, for a message (empty for nothing).

    Args:
        layout: the tensors.
        model: with the arguments that the file implies; only names are looked at.
    """
    expected = model.state_dict()
    buffers = {name for name, _ in model.named_buffers()}
    own = {name.partition(".")[0] for name in expected} | _PARTS
    kept: StateDict = {}
    left_out = [*layout.outside, *layout.dropped]
    for name, tensor in layout.state_dict.items():
        if name in expected:
            kept[name] = tensor
        elif name in buffers or name.rpartition(".")[2] in _COMPUTED:
            continue
        elif name in _LONE or ("." in name and name.partition(".")[0] not in own) or name.startswith(_PRETRAINING):
            left_out.append(name)
        else:
            kept[name] = tensor
    return kept, _grouped(left_out)


def with_classifier(layout: Layout, model: nn.Module) -> Layout:
    """With a classifier that the file keeps beside the model (`backbone.*` and `head.weight`), if there is one.

    Args:
        layout: the tensors.
        model: the architecture, which tells the classifier's name and width.
    """
    cfg: Any = model.pretrained_cfg
    own, width = cfg.get("classifier"), getattr(model, "num_features", None)
    if not isinstance(own, str) or any(name.startswith(f"{own}.") for name in layout.state_dict):
        return layout
    weights = [
        name
        for name, tensor in layout.outside.items()
        if name.split(".")[-2:] in [[word, "weight"] for word in _CLASSIFIERS] and tensor.shape[1:] == (width,)
    ]
    if len(weights) != 1:
        return layout
    beside = weights[0].removesuffix("weight")
    found = {name: tensor for name, tensor in layout.outside.items() if name in (f"{beside}weight", f"{beside}bias")}
    if any(name.startswith(beside) and name not in found for name in layout.outside):
        return layout
    taken = {f"{own}.{name.removeprefix(beside)}": tensor for name, tensor in found.items()}
    outside = {name: tensor for name, tensor in layout.outside.items() if name not in found}
    return replace(layout, state_dict={**layout.state_dict, **taken}, outside=outside)


def with_bias(state_dict: Mapping[str, Tensor], model: nn.Module) -> StateDict:
    """With a bias of zeros for a classifier that has none, where the architecture's has one."""
    expected = model.state_dict()
    cfg: Any = model.pretrained_cfg
    own = cfg.get("classifier")
    zeros = {}
    if f"{own}.weight" in state_dict and f"{own}.bias" in expected and f"{own}.bias" not in state_dict:
        weight = state_dict[f"{own}.weight"]
        zeros = {f"{own}.bias": torch.zeros(weight.shape[0])}
    return {**state_dict, **zeros}


def without_classifier(layout: Layout, model: nn.Module) -> Layout:
    """Without a classifier that `model` cannot have, being more than one layer."""
    cfg: Any = model.pretrained_cfg
    own, expected = cfg.get("classifier"), model.state_dict()
    if not isinstance(own, str) or f"{own}.weight" in layout.state_dict:
        return layout
    parts = {name: tensor for name, tensor in layout.state_dict.items() if name.startswith(f"{own}.")}
    parts = {name: tensor for name, tensor in parts.items() if name not in expected}
    kept = {name: tensor for name, tensor in layout.state_dict.items() if name not in parts}
    return replace(layout, state_dict=kept, outside={**layout.outside, **parts})


def check_classifier(state_dict: Mapping[str, Tensor], model: nn.Module, label: str) -> None:
    """Refuse a trained classifier that is more than the one layer which `model` has.

    Raises:
        CheckpointError: it is; the features can be had without it.
    """
    cfg: Any = model.pretrained_cfg
    own = cfg.get("classifier")
    if not isinstance(own, str) or f"{own}.weight" in state_dict:
        return
    parts = [name for name in state_dict if name.startswith(f"{own}.") and name not in model.state_dict()]
    if parts:
        raise CheckpointError(
            f"{label}: its classifier is no single layer ({', '.join(parts[:_SHOWN])}), which this architecture has;"
            " `num_classes=0` takes the features without it"
        )


def check_representation(layout: Layout, model: nn.Module, label: str) -> None:
    """Refuse a trained classifier behind a layer of its own, which timm's Vision Transformers had and have no more.

    Raises:
        CheckpointError: so it is; the features can be had without both.
    """
    cfg: Any = model.pretrained_cfg
    trained = layout.state_dict.get(f"{cfg.get('classifier')}.weight")
    before = [name for name in (*layout.state_dict, *layout.dropped) if name.startswith(_REPRESENTATION)]
    if before and trained is not None and before[0] not in model.state_dict() and bool(trained.any()):
        raise CheckpointError(
            f"{label}: its classifier stands behind a layer ({before[0]}) which this architecture does not have;"
            " `num_classes=0` takes the features before it"
        )


def check_pooling(state_dict: Mapping[str, Tensor], model: nn.Module, label: str) -> None:
    """Refuse weights that leave open how features are pooled, where the architecture's own way cannot be theirs.

    Raises:
        CheckpointError: so it is; the pooling can be named.
    """
    expected = model.state_dict()
    if "norm.weight" in state_dict and {"norm.weight", "fc_norm.weight"} & expected.keys() == {"fc_norm.weight"}:
        raise CheckpointError(
            f"{label}: its last normalisation is before pooling, where this architecture has it behind, and weights do"
            " not tell which pooling it has: give `global_pool='token'` or `global_pool='avg'`"
        )


def _grouped(names: Iterable[str]) -> str:
    """Names by their first part: `decoder_blocks (8 tensors), mask_token`."""
    counts = Counter(name.partition(".")[0] + ("." if "." in name else "") for name in names)
    shown = [f"{name.rstrip('.')} ({count} tensors)" if name[-1] == "." else name for name, count in counts.items()]
    return ", ".join(shown[:_SHOWN_GROUPS]) + (", …" if len(shown) > _SHOWN_GROUPS else "")
