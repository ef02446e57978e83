"""`.pt2` archives come from strangers: what is in one is checked before torch reads it.

`torch.export.load` looks up operators by name, evaluates the symbolic sizes and compiles the guards that an archive
holds, writes its names into Python code, and unpickles tensors and objects that it marks so; a
written-for-the-purpose archive could run code. Archives that `torch.export.save` makes of a vision model need none of
that: plain tensors, aten operators, no guards (`pt2_graph.py`).
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path

import torch

from vitcompact.errors import CheckpointError
from vitcompact.exporting.pt2_graph import objections

_MEMBERS = re.compile(
    r"[^/]+/(archive_format|archive_version|version|byteorder|\.data/\w+|extra/[\w.]+|models/model\.json"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+|data/sample_inputs/model\.pt"
    r"|data/(weights|constants)/model_(weights|constants)_config\.json)"
)
_EXTRA = re.compile(r"[^/]+/extra/[\w.]+")
"""Texts that torch hands over as they are."""
_LARGEST_GRAPH = 1 << 28


def check_archive(path: Path) -> None:
    """Refuse an archive that holds more than tensors and a graph of aten operators.

    Raises:
        CheckpointError: it does, or it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path)
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, EOFError, RecursionError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is damaged or no .pt2 archive: {error}") from error


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    names = archive.namelist()
    if foreign := [name for name in names if not _MEMBERS.fullmatch(name)]:
        raise CheckpointError(f"{path} is refused: it holds {foreign[0]}, which no model of vitcompact needs")
    if len(set(names)) != len(names) or not any(name.endswith("/models/model.json") for name in names):
        raise CheckpointError(f"{path} is damaged or no .pt2 archive: no single model in it")
    for info in archive.infolist():
        if info.filename.endswith(".json"):
            if info.file_size > _LARGEST_GRAPH:
                raise CheckpointError(f"{path} is refused: {info.filename} claims {info.file_size:,} bytes")
            document = json.loads(archive.read(info))
            if not _EXTRA.fullmatch(info.filename):
                for reason in objections(document):
                    raise CheckpointError(f"{path} is refused: {reason}")
        elif info.filename.endswith("sample_inputs/model.pt") and info.file_size:
            _check_pickle(archive.read(info), path)


def _check_pickle(content: bytes, path: Path) -> None:
    """Example inputs are read by torch with a fallback that runs code: they must not need it."""
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} is refused: its example inputs hold more than tensors") from error
