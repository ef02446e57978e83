"""Reads constructor arguments of a timm model off the shapes of its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitcompact.checkpoint.matching import classifier_names
from vitcompact.checkpoint.quiet import quiet_timm

_NATIVE_SHARE = 0.5  # share of a model's names found in a file from which the file's layout counts as timm's own


class _SkipInit(TorchFunctionMode):
    """Makes in-place operations on tensors without memory do nothing: four fifths of a build are initialisation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__")
        if in_place and args and isinstance(args[0], Tensor) and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules made in here have names and shapes only (the `meta` device), and are made quickly."""
    with torch.device("meta"), _SkipInit():
        yield


def meta_model(name: str, **kwargs: Any) -> nn.Module:
    """A timm architecture without memory."""
    with quiet_timm(), without_memory():
        model: nn.Module = timm.create_model(name, pretrained=False, **kwargs)
    return model


def infer_args(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Any]:
    """Arguments under which the architecture of `model` has the shapes of `state_dict`.

    Args:
        state_dict: tensors by name.
        model: the architecture with its default arguments; only names and shapes are looked at.

    Returns:
        `num_classes`, `in_chans`, `img_size` (height, width; square grids only) and `global_pool`, each only where the
        weights tell. Empty for weights in a layout that is not timm's.
    """
    expected = model.state_dict()
    if sum(name in state_dict for name in expected) < _NATIVE_SHARE * len(expected):
        return {}
    cfg: Any = model.pretrained_cfg
    args: dict[str, Any] = {"num_classes": _num_classes(state_dict, cfg)}
    stem = state_dict.get(f"{cfg.get('first_conv')}.weight")
    expected_stem = expected.get(f"{cfg.get('first_conv')}.weight")
    if stem is not None and expected_stem is not None and stem.ndim == 4:
        args["in_chans"] = stem.shape[1] * cfg["input_size"][0] // expected_stem.shape[1]
    img_size = _img_size(state_dict, model)
    if img_size is not None:
        args["img_size"] = img_size
    if "fc_norm.weight" in state_dict and "fc_norm.weight" not in expected:
        args["global_pool"] = "avg"  # a ViT that normalises after pooling its patch tokens
    return args


def _num_classes(state_dict: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> int:
    weights = (state_dict.get(f"{name}.weight") for name in classifier_names(cfg))
    return next((weight.shape[0] for weight in weights if weight is not None), 0)


def _img_size(state_dict: Mapping[str, Tensor], model: nn.Module) -> tuple[int, int] | None:
    """Image size (height, width) from the length of the position embedding, None where it says nothing.

    The embedding `pos_embed` has shape (1, prefix tokens + grid height * grid width, dim).
    """
    expected = getattr(model, "pos_embed", None)
    patch_embed = getattr(model, "patch_embed", None)
    num_patches = getattr(patch_embed, "num_patches", None)
    pos_embed = state_dict.get("pos_embed")
    if pos_embed is None or not isinstance(expected, Tensor) or not isinstance(num_patches, int):
        return None
    if pos_embed.ndim != 3 or expected.ndim != 3 or pos_embed.shape[1] == expected.shape[1]:
        return None
    num_grid = pos_embed.shape[1] - (expected.shape[1] - num_patches)
    grid = math.isqrt(max(num_grid, 0))
    if grid < 1 or grid * grid != num_grid:
        return None
    img_size: Any = getattr(patch_embed, "img_size", None)
    grid_size: Any = getattr(patch_embed, "grid_size", None)
    if not img_size or not grid_size:
        return None
    # Pixels per token along one side: the patch size, or the stride of a convolutional stem.
    return grid * (img_size[0] // grid_size[0]), grid * (img_size[1] // grid_size[1])
