"""What an export wrote, and how close it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcompact.utils.text import fields, pairs_html


@dataclass(frozen=True)
class ExportResult:
    """A file that was written; differences are None where its runtime does not exist on this system.

    Attributes:
        format: the suffix without its dot.
        precision: number format of weights and arithmetic.
        max_abs_diff: largest difference from PyTorch's outputs, in batches of 1, 3 and 8 images.
        rel_diff: the same over the largest output.
        agreement: share of images with the same largest output.
        checked_with: the runtime that ran the file, or `not run`.
        bytes: size of everything that was written.
        out: the file.
        how_to_run: a line of Python that runs it on `images`, a float32 numpy array (batch, channels, height, width).
    """

    format: str
    precision: str
    max_abs_diff: float | None
    rel_diff: float | None
    agreement: float | None
    checked_with: str
    bytes: int
    out: Path
    how_to_run: str

    def __repr__(self) -> str:
        return fields("ExportResult", **self.to_json())

    def _repr_html_(self) -> str:
        return pairs_html("ExportResult", self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The keys of `export --json`."""
        names = ("format", "precision", "max_abs_diff", "rel_diff", "agreement", "checked_with", "bytes")
        return {**{name: getattr(self, name) for name in names}, "out": str(self.out), "how_to_run": self.how_to_run}
