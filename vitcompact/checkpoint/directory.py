"""Loads directories in timm's hub layout (`config.json` beside the weights), strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.models import get_pretrained_cfg
from timm.models._hub import load_model_config_from_path
from torch import nn

from vitcompact.checkpoint.claims import check_claim, check_numbers
from vitcompact.checkpoint.foreign import ForeignDirectory, build, foreign_directory
from vitcompact.checkpoint.matching import fill
from vitcompact.checkpoint.names import ENTRYPOINT, require_known
from vitcompact.checkpoint.quiet import timm_errors
from vitcompact.checkpoint.read import read_weights, weights_file_of
from vitcompact.checkpoint.unfinished import check_no_adapters
from vitcompact.data.described import check_described
from vitcompact.errors import CheckpointError, UsageError
from vitcompact.utils.files import restored
from vitcompact.utils.plain_yaml import parse_yaml
from vitcompact.utils.reading import read_json, read_text, user_path

_CARD_BYTES = 1 << 20


def is_hub_directory(path: Path) -> bool:
    """Whether a directory is in timm's hub layout."""
    return (path / "config.json").is_file()


def load(path: str | Path, **kwargs: Any) -> nn.Module:
    """Load a model from a directory that `save`, timm, transformers or open_clip wrote.

    Args:
        path: the directory.
        **kwargs: what `timm.create_model` takes: `num_classes`, `img_size`, `in_chans`, `drop_rate`, `features_only`…

    Returns:
        The model on the CPU, in evaluation mode.

    Raises:
        UsageError: no such directory, or not in timm's hub layout.
        CheckpointError: damaged, or the weights are not those of the architecture in `config.json`.
    """
    return load_directory(restored(user_path(path)), **kwargs).eval()


def load_directory(directory: Path, **kwargs: Any) -> nn.Module:
    """What `load` does, in training mode as timm leaves it."""
    foreign = foreign_directory(directory)
    if foreign is not None:
        return _load_foreign(foreign, kwargs)
    _, architecture, _ = read_config(directory)
    name = f"local-dir:{directory}"
    if architecture == ENTRYPOINT or kwargs.get("features_only"):
        with timm_errors(CheckpointError, f"{directory} cannot be loaded"):
            model: nn.Module = timm.create_model(name, pretrained=True, **kwargs)
    else:
        path = weights_file_of(directory)
        weights = read_weights(path).state_dict
        with timm_errors(CheckpointError, f"{architecture} cannot be built from {directory / 'config.json'}"):
            check_claim(lambda: timm.create_model(name, pretrained=False, **kwargs), weights, str(directory))
            model = timm.create_model(name, pretrained=False, **kwargs)
        fill(model, weights, base=architecture, label=str(path))
    license_name = _license_of_card(directory)
    if license_name:
        cfg: Any = model.pretrained_cfg
        cfg["license"] = license_name
    return model


def _load_foreign(foreign: ForeignDirectory, kwargs: dict[str, Any]) -> nn.Module:
    if kwargs.get("features_only"):
        raise UsageError(f"{foreign.path} ({foreign.layout.title}) has no features_only: save it, and load that")
    size, num_classes = kwargs.pop("img_size", None), kwargs.pop("num_classes", None)
    size = (size, size) if isinstance(size, int) else size
    described = foreign.describe(size)
    return build(described, str(foreign.path), num_classes=num_classes, image_size=size, more=kwargs)


def read_config(directory: Path) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """The pretrained_cfg, architecture and model arguments in a directory's `config.json`.

    Raises:
        UsageError: no such directory, or without a `config.json`.
        CheckpointError: the file is damaged or names an architecture that timm does not have.
    """
    if not directory.is_dir():
        raise UsageError(f"no such directory: {directory}")
    check_no_adapters(directory)
    if not is_hub_directory(directory):
        raise UsageError(
            f"{directory} holds no config.json, so it is no model directory; for bare weights give the file itself"
        )
    path = directory / "config.json"
    try:
        read_json(path)  # within bounds, which timm does not look at
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    with timm_errors(CheckpointError, f"{path} is damaged"):
        cfg, architecture, args = load_model_config_from_path(directory)
    if not isinstance(cfg, dict) or not isinstance(architecture, str) or not isinstance(args, dict):
        raise CheckpointError(f"{path} is damaged: expected pretrained_cfg, architecture and model_args")
    check_described(cfg, str(path))
    check_numbers({key: value for key, value in args.items() if key != "plan"}, str(path))
    if architecture != ENTRYPOINT:
        try:
            require_known(architecture)
        except UsageError as error:
            raise CheckpointError(f"{path}: {error}") from error
    return cfg, architecture, args


def size_args(cfg: Mapping[str, Any], args: Mapping[str, Any], img_size: tuple[int, int]) -> dict[str, Any]:
    """Arguments of `timm.create_model` for a model at `img_size` (height, width in pixels).

    Architectures of a fixed size take it as an argument; for the others it is only recorded as their input size.
    """
    if cfg.get("fixed_input_size") or "img_size" in args:
        return {"img_size": img_size}
    channels = (cfg.get("input_size") or (3,))[0]
    return {"pretrained_cfg_overlay": {"input_size": (channels, *img_size)}}


def registered_cfg(name: str) -> dict[str, Any]:
    """timm's pretrained_cfg of a model name (with or without a tag), empty where it has none."""
    cfg = get_pretrained_cfg(name)
    return dict(cfg.to_dict()) if cfg is not None else {}


def _license_of_card(directory: Path) -> str | None:
    """The license in the front matter of a directory's README.md, if it states one."""
    try:
        text = read_text(directory / "README.md", _CARD_BYTES)
        front_matter = parse_yaml(text.split("---", 2)[1]) if text.startswith("---") else None
    except (OSError, ValueError, IndexError):
        return None
    name = front_matter.get("license") if isinstance(front_matter, dict) else None
    return name if isinstance(name, str) and name != "unknown" else None
