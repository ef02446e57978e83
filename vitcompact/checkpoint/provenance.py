"""Where a model came from: recorded beside every output so that a result can be traced to the exact weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from vitcompact.errors import CheckpointError

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
    """

    source: str
    kind: SourceKind
    architecture: str
    file: str | None = None
    sha256: str | None = None
    bytes: int | None = None

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
            provenance = cls(**data)
        except TypeError as error:
            raise CheckpointError(f"malformed provenance: {error}") from error
        texts = (provenance.source, provenance.architecture)
        optional = (provenance.file, provenance.sha256)
        if (
            provenance.kind not in get_args(SourceKind)
            or not all(isinstance(text, str) for text in texts)
            or not all(text is None or isinstance(text, str) for text in optional)
            or not (provenance.bytes is None or isinstance(provenance.bytes, int))
        ):
            raise CheckpointError(f"malformed provenance: {dict(data)}")
        return provenance

    @classmethod
    def of_file(cls, source: str, kind: SourceKind, architecture: str, path: Path) -> Provenance:
        """The provenance of weights read from `path`, whose SHA-256 is computed here."""
        return cls(source, kind, architecture, path.name, sha256_of(path), path.stat().st_size)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
