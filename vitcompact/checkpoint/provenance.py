"""Where a model came from: recorded beside every output so that a result can be traced to the exact weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from vitcompact.checkpoint.shards import files_of
from vitcompact.errors import CheckpointError
from vitcompact.utils.reading import user_path
from vitcompact.utils.typed import typed

DIR_PREFIX = "local-dir:"
SourceKind = Literal["timm", "hf-hub", "local-dir", "file", "random"]
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Provenance:
    """The origin of a model's weights.

    Attributes:
        source: the SOURCE as it was given.
        kind: which form of SOURCE that was; 'random' for untrained weights.
        architecture: name of the timm architecture (for a vitcompact checkpoint, of the model it was made from).
        file: name of the weights file, without its folder; None when there was none.
        sha256: hex digest of that file.
        bytes: size of that file.
        settings: hex digest of what the weights do not tell: how the model is built, and how images are prepared for
            it (`settings_of`); None in records that were written before it was kept.
        read_as: of a bare weights file, what was recorded in it or read off its weights: arguments of the architecture,
            preparation of images.
    """

    source: str
    kind: SourceKind
    architecture: str
    file: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    settings: str | None = None
    read_as: Mapping[str, Any] | None = None

    @property
    def local_path(self) -> Path | None:
        """The directory or file that the source is on this machine, or None."""
        if self.kind not in ("local-dir", "file"):
            return None
        text = self.source.strip()
        return user_path(text[len(DIR_PREFIX) :] if text.lower().startswith(DIR_PREFIX) else text)

    def differs(self, other: Provenance) -> str | None:
        """In what another model with the same source differs, or None: its weights, or its settings."""
        if self.sha256 != other.sha256:
            return "weights"
        if None not in (self.settings, other.settings) and self.settings != other.settings:
            return "settings (config.json: preparation of images, arguments of the architecture)"
        return None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `Provenance.from_json` reads it back to an equal object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Provenance:
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: fields are missing, unknown or of the wrong type.
        """
        try:
            provenance = typed(cls, data, "provenance")
        except ValueError as error:
            raise CheckpointError(f"malformed provenance: {error}") from error
        if provenance.bytes is not None and provenance.bytes < 0:
            raise CheckpointError(f"malformed provenance: a file of {provenance.bytes} bytes")
        return provenance

    @classmethod
    def of_file(cls, source: str, kind: SourceKind, architecture: str, path: Path) -> Provenance:
        """The provenance of weights read from `path`; the SHA-256 is computed here, of an index with all its files."""
        files = files_of(path)
        size = sum(file.stat().st_size for file in files)
        return cls(source, kind, architecture, path.name, sha256_of(*files), size)


_SETTINGS = ("num_classes", "input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "classifier")


def settings_of(model: nn.Module) -> str:
    """Hex SHA-256 of what a timm model's weights do not tell: arguments of its architecture, preparation of images."""
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    told = {name: cfg.get(name) for name in _SETTINGS}
    given: Mapping[str, Any] = getattr(model, "_model_args", {})
    args = {name: value for name, value in given.items() if not name.startswith("pretrained")}  # those say from where
    text = json.dumps([cfg.get("architecture"), args, told], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of(*paths: Path) -> str:
    """Hex SHA-256 of a file, or of several one after the other, read in chunks."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
