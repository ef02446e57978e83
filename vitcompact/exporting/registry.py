"""The formats, by the suffix of their files."""

from __future__ import annotations

from pathlib import Path

from vitcompact.errors import UsageError
from vitcompact.exporting.base import Format
from vitcompact.exporting.coreml import CoreMl
from vitcompact.exporting.executorch_file import ExecuTorch
from vitcompact.exporting.onnx_file import Onnx
from vitcompact.exporting.openvino_ir import OpenVino
from vitcompact.exporting.pt2 import Pt2

FORMATS: dict[str, Format] = {each.suffix: each for each in (Onnx(), Pt2(), OpenVino(), CoreMl(), ExecuTorch())}


def format_of(path: str | Path) -> Format:
    """The format that a file name asks for.

    Raises:
        UsageError: the suffix is of none of them.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        accepted = ", ".join(f"{name} ({each.title})" for name, each in FORMATS.items())
        got = f"{suffix!r}" if suffix else "no suffix"
        raise UsageError(f"{path}: the suffix says which format to write, got {got}; accepted: {accepted}")
    return FORMATS[suffix]
