"""A directory of another library: which layout it has, and what it holds in timm's terms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitcompact.checkpoint.foreign import open_clip
from vitcompact.checkpoint.foreign.config import Config
from vitcompact.checkpoint.foreign.described import Described, Layout, Size, Tensors
from vitcompact.checkpoint.foreign.preprocessing import FILE, preparation
from vitcompact.checkpoint.foreign.registry import BY_TYPE
from vitcompact.checkpoint.json_files import read_json
from vitcompact.checkpoint.read import read_weights, weights_file_of
from vitcompact.checkpoint.unfinished import check_finished
from vitcompact.errors import CheckpointError

_DAMAGE = (KeyError, IndexError, RuntimeError, TypeError, ValueError, AttributeError, ArithmeticError)
"""What tensors that are missing or misshaped, and values of another type, make of the code that takes them."""


@dataclass(frozen=True)
class ForeignDirectory:
    """A directory that another library wrote.

    Attributes:
        layout: how it is written.
        config: its configuration.
        weights: its weights file.
    """

    path: Path
    layout: Layout
    config: Config
    weights: Path

    def describe(self, size: Size) -> Described:
        """Read the weights.

        Args:
            size: (height, width) in pixels that was asked for, None for that of the images the checkpoint prepares.

        Raises:
            CheckpointError: damaged, or not what its configuration says.
        """
        found = preparation(self.path)
        prepare, prepared_size = found if found is not None else ({}, None)
        if self.config.data.get("quantization_config") is not None:
            raise CheckpointError(
                f"{self.path} ({self.layout.title}) is quantised (quantization_config): give the checkpoint"
                " from before that"
            )
        tensors: Tensors = read_weights(self.weights).state_dict
        check_finished(tensors, str(self.path))
        try:
            described = self.layout.describe(self.config, tensors, size or prepared_size)
        except _DAMAGE as error:
            raise CheckpointError(
                f"{self.weights} is no {self.layout.title} model as its configuration says: {error}"
            ) from error
        except CheckpointError as error:
            raise CheckpointError(f"{self.path} ({self.layout.title}): {error}") from error
        return replace(described, prepare={**self.layout.prepare, **described.prepare, **prepare})

    @property
    def prepared(self) -> bool:
        """Whether the directory says how images are prepared."""
        return (self.path / FILE).is_file() or not self.layout.prepare


def foreign_directory(path: Path) -> ForeignDirectory | None:
    """The layout of a directory, None for one of timm's or ours, or for none at all.

    Raises:
        CheckpointError: a damaged configuration, or a layout that is not read, which is named.
    """
    config_file, clip_file = path / "config.json", path / open_clip.FILE
    if config_file.is_file():
        data = read_json(config_file)
        model_type = data.get("model_type")
        if isinstance(data.get("architecture"), str) and model_type != "timm_wrapper":
            return None
        if not isinstance(model_type, str):
            return None  # timm's reader says what it misses
        return ForeignDirectory(path, _layout_of(data, path), Config(data, str(config_file)), weights_file_of(path))
    if clip_file.is_file():
        data = read_json(clip_file)
        weights = open_clip.weights_file(path) or weights_file_of(path)
        return ForeignDirectory(path, BY_TYPE[open_clip.TYPE], Config(data, str(clip_file)), weights)
    return None


def _layout_of(data: dict[str, Any], path: Path) -> Layout:
    model_type = data["model_type"]
    if model_type in BY_TYPE:
        return BY_TYPE[model_type]
    classes = data.get("architectures")
    classes = f" ({', '.join(map(str, classes))})" if isinstance(classes, list) and classes else ""
    known = ", ".join(dict.fromkeys(layout.title.removeprefix("Hugging Face ") for layout in BY_TYPE.values()))
    raise CheckpointError(
        f"{path} holds a model of transformers of the type {model_type!r}{classes}, which is not read; "
        f"read are: {known}; of any other model, give the timm checkpoint"
    )
