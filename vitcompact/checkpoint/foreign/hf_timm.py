"""Hugging Face transformers: `TimmWrapper`, a timm model in the library's clothes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitcompact.checkpoint.foreign.config import Config
from vitcompact.checkpoint.foreign.described import Described, Layout, Size, Tensors
from vitcompact.checkpoint.names import require_known
from vitcompact.errors import CheckpointError, UsageError

_FORBIDDEN = ("checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit", "pretrained", "pretrained_cfg")
_PREPARE = ("mean", "std", "interpolation", "crop_pct", "crop_mode", "input_size")


def _timm_wrapper(config: Config, tensors: Tensors, size: Size) -> Described:
    name = config.text("architecture", "").removeprefix("timm/")
    try:
        architecture = require_known(name)
    except UsageError as error:
        raise CheckpointError(f"{config.where}: {error}") from error
    headless = "TimmWrapperModel" in config.names("architectures")
    num_classes = 0 if headless else config.integer("num_classes", 1000, least=0)
    given = config.section("model_args").data
    args: dict[str, Any] = {**given, "num_classes": num_classes}
    if forbidden := [key for key in _FORBIDDEN if args.get(key)]:
        raise CheckpointError(f"{config.where}: model_args may not hold {', '.join(forbidden)}")
    cfg = config.section("pretrained_cfg").data
    names = config.data.get("label_names")
    return Described(
        architecture,
        args,
        {key.removeprefix("timm_model."): tensor for key, tensor in tensors.items()},
        num_classes,
        prepare={key: cfg[key] for key in _PREPARE if cfg.get(key) is not None},
        class_names=_class_names(names, num_classes),
    )


def _class_names(names: object, num_classes: int) -> tuple[str, ...]:
    if not isinstance(names, list) or len(names) != num_classes or not all(isinstance(name, str) for name in names):
        return ()
    return () if names == [f"LABEL_{index}" for index in range(num_classes)] else tuple(names)


def is_wrapper(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` that names a timm architecture was written by transformers."""
    return config.get("model_type") == "timm_wrapper"


LAYOUTS = (Layout("Hugging Face TimmWrapper", ("timm_wrapper",), _timm_wrapper, {}),)
