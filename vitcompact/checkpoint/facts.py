"""What a checkpoint records about its model: beside the weights, or in a file of the training script next to it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitcompact.utils.plain_yaml import parse_yaml
from vitcompact.utils.reading import parse_json, read_text

_SETTINGS = ("args", "hyper_parameters", "hparams", "config", "cfg", "opt")  # keys that training scripts use
_ARCHITECTURES = ("model", "model_name", "arch", "architecture")
_LABELS = ("label_names", "class_names", "classes")
_NOT_ARGUMENTS = ("pretrained", "checkpoint", "features_only", "out_indices", "scriptable", "exportable", "cache_dir")
_MAX_BYTES = 1 << 22


@dataclass(frozen=True)
class Facts:
    """What is recorded of a model.

    Attributes:
        architecture: its name, in timm or elsewhere.
        args: arguments of `timm.create_model`: `num_classes`, `in_chans`, `img_size`, `global_pool` and others.
        cfg: entries of timm's `pretrained_cfg`: how images are prepared, names of the classes.
        origins: where each of these was found, for messages.
    """

    architecture: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    cfg: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)

    def over(self, other: Facts) -> Facts:
        """These, and what only the other ones tell."""
        name = self.architecture or other.architecture
        return Facts(name, {**other.args, **self.args}, {**other.cfg, **self.cfg}, {**other.origins, **self.origins})


def facts_of(content: Mapping[Any, Any], folder: Path) -> Facts:
    """What a checkpoint in `folder` says in itself: timm's `arch` and `args`, `hyper_parameters` of Lightning."""
    facts = Facts()
    for key in _SETTINGS:
        settings = content.get(key)
        settings = vars(settings) if isinstance(settings, argparse.Namespace) else settings
        if isinstance(settings, Mapping):
            facts = facts.over(_read(settings, f"its {key}", folder))
    own = {name: content[name] for name in ("arch", "architecture", "model_name", *_LABELS) if name in content}
    return _read(own, "it", folder).over(facts)


def facts_beside(path: Path) -> Facts:
    """What the files next to a weights file say: timm's `args.yaml` (training script) and `config.json` (hub layout).

    Files that are damaged or of another kind say nothing.
    """
    args, config = (_document(path.with_name(name)) for name in ("args.yaml", "config.json"))
    facts = _read(args, "args.yaml", path.parent)
    if isinstance(config.get("pretrained_cfg"), Mapping):  # timm's
        cfg, model_args = config["pretrained_cfg"], config.get("model_args")
        flat = {**{name: cfg[name] for name in cfg if name != "architecture"}, **config, "model_kwargs": model_args}
        facts = facts.over(_read(flat, "config.json", path.parent))
    return facts


def _with_labels(facts: Facts, class_map: Path) -> Facts:
    """With the names of the classes in a text file, one a line, where it is beside the checkpoint.

    A checkpoint may come from a stranger: files elsewhere that it names are not looked at.
    """
    if not class_map.is_file() or class_map.stat().st_size > _MAX_BYTES:
        return facts
    lines = [line.strip() for line in class_map.read_text(encoding="utf-8", errors="replace").splitlines()]
    cfg = {**facts.cfg, "label_names": tuple(line for line in lines if line)}
    return replace(facts, cfg=cfg, origins={**facts.origins, "label_names": class_map.name})


def _document(path: Path) -> Mapping[str, Any]:
    try:
        text = read_text(path, _MAX_BYTES)
        document = parse_json(text) if path.suffix == ".json" else parse_yaml(text)
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, Mapping) else {}


def _read(settings: Mapping[Any, Any], origin: str, folder: Path) -> Facts:
    name = next((settings[key] for key in _ARCHITECTURES if _is_text(settings.get(key))), None)
    args, cfg = _args(settings), _cfg(settings)
    facts = Facts(name, args, cfg, dict.fromkeys((*args, *cfg), origin))
    class_map = settings.get("class_map")
    return _with_labels(facts, folder / Path(class_map).name) if isinstance(class_map, str) and class_map else facts


def _args(settings: Mapping[Any, Any]) -> dict[str, Any]:
    given = settings.get("model_kwargs")
    args = (
        {}
        if not isinstance(given, Mapping)
        else {key: value for key, value in given.items() if _is_text(key) and not key.startswith(_NOT_ARGUMENTS)}
    )
    size = settings.get("input_size")
    if isinstance(size, (list, tuple)) and len(size) == 3 and all(map(_is_count, size)):
        args |= {"in_chans": size[0], "img_size": (size[1], size[2])}
    for key in (size, settings.get("img_size")):
        if (sides := _sides(key)) is not None:
            args["img_size"] = sides
    for key, name in (("nb_classes", "num_classes"), ("num_classes", "num_classes"), ("in_chans", "in_chans")):
        if _is_count(settings.get(key)):
            args[name] = settings[key]
    for key in ("global_pool", "gp"):
        if _is_text(settings.get(key)):
            args["global_pool"] = settings[key]
    return args


def _cfg(settings: Mapping[Any, Any]) -> dict[str, Any]:
    cfg: dict[str, Any] = {}
    for name in ("mean", "std"):
        values = settings.get(name)
        values = [values] if isinstance(values, float) else values
        if isinstance(values, (list, tuple)) and values and all(isinstance(value, (int, float)) for value in values):
            cfg[name] = tuple(float(value) for value in values)
    share = settings.get("crop_pct")
    if isinstance(share, (int, float)) and 0 < share <= 1:
        cfg["crop_pct"] = float(share)
    cfg |= {name: settings[name] for name in ("interpolation", "crop_mode") if _is_text(settings.get(name))}
    labels = next((settings[key] for key in _LABELS if isinstance(settings.get(key), (list, tuple))), ())
    if labels and all(isinstance(label, str) for label in labels):
        cfg["label_names"] = tuple(labels)
    return cfg


def _sides(size: object) -> tuple[int, int] | None:
    if _is_count(size):
        size = (size, size)
    return (
        (size[0], size[1]) if isinstance(size, (list, tuple)) and len(size) == 2 and all(map(_is_count, size)) else None
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
