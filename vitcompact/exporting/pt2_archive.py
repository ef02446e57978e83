"""`.pt2` archives come from strangers: what is in one is checked before torch reads it.

`torch.export.load` looks up operators by name, evaluates the symbolic sizes and compiles the guards that an archive
holds, and unpickles tensors and objects that it marks so; a written-for-the-purpose archive could run code. Archives
that `torch.export.save` makes of a vision model need none of that: plain tensors, aten operators, no guards.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vitcompact.errors import CheckpointError

_MEMBERS = re.compile(
    r"[^/]+/(archive_format|archive_version|version|byteorder|\.data/\w+|extra/[\w.]+|models/model\.json"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+|data/sample_inputs/model\.pt"
    r"|data/(weights|constants)/model_(weights|constants)_config\.json)"
)
_TARGET = re.compile(
    r"torch\.ops\.aten\.(?!from_file|_?save|_?load)\w+\.\w+"
    r"|_operator\.(getitem|add|sub|mul|floordiv|mod|neg|eq|ne|lt|le|gt|ge)"
)
_SIZE = re.compile(
    r"(?:[su]\d++|Symbol\('[su]\d++'(?:, (?:positive|nonnegative|integer)=True)*+\)"
    r"|Integer|Add|Mul|Pow|Max|Min|FloorDiv|Mod|PythonMod|CleanDiv|CeilDiv|Eq|Ne|\d++|[-+*/(), <>=])*+"
)
_TREE_TYPES = (None, "builtins.tuple", "builtins.list", "builtins.dict")
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
            for reason in _objections(json.loads(archive.read(info))):
                raise CheckpointError(f"{path} is refused: {reason}")
        elif info.filename.endswith("sample_inputs/model.pt") and info.file_size:
            _check_pickle(archive.read(info), path)


def _check_pickle(content: bytes, path: Path) -> None:
    """Example inputs are read by torch with a fallback that runs code: they must not need it."""
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} is refused: its example inputs hold more than tensors") from error


def _objections(data: Any) -> Iterator[str]:
    """Why a part of the graph or of a list of tensors is not read."""
    if isinstance(data, list):
        for value in data:
            yield from _objections(value)
    for key, value in data.items() if isinstance(data, dict) else ():
        if key == "use_pickle" and value:
            yield "it holds pickled objects"
        elif key == "guards_code" and value:
            yield "it holds code"
        elif key == "target" and isinstance(value, str) and _is_operator(data) and not _TARGET.fullmatch(value):
            yield f"operator {value[:80]!r} is not one of a vision model"
        elif key == "expr_str" and not (isinstance(value, str) and _SIZE.fullmatch(value)):
            yield f"{str(value)[:80]!r} is no size"
        elif key in ("in_spec", "out_spec") and isinstance(value, str) and not _is_plain(json.loads(value)):
            yield "its inputs or outputs are no plain tensors"
        elif key == "as_operator" and value:
            yield "it hands on operators"
        else:
            yield from _objections(value)


def _is_operator(node: dict[str, Any]) -> bool:
    """Whether an object is a node of the graph; entries of the signature have targets too, which are names."""
    return "inputs" in node and "outputs" in node


def _is_plain(spec: Any) -> bool:
    """Whether inputs or outputs are nested in nothing but tuples, lists and dictionaries."""
    if isinstance(spec, list):
        return all(map(_is_plain, spec))
    if not isinstance(spec, dict):
        return True
    return spec.get("type") in _TREE_TYPES and all(map(_is_plain, spec.values()))
