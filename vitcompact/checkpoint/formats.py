"""The two kinds of weights file, each read without trusting it."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vitcompact.checkpoint.claims import check_number
from vitcompact.checkpoint.inert import Inert, PlainDict, standins
from vitcompact.checkpoint.pickles import forbidden_globals, named_globals
from vitcompact.checkpoint.quiet import first_line
from vitcompact.checkpoint.script import is_script, script_standins, script_tensors, without_code
from vitcompact.checkpoint.torch_release import check_torch_reads_pickles
from vitcompact.errors import CheckpointError

_ZIP_SLACK_BYTES = 1 << 20
_BYTES = "builtins.bytearray"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: not one, truncated, damaged, or with a header longer than the file or the format's limit, which
            safetensors checks before it reads it.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            check_number(len(file.keys()), str(path))
        return dict(safetensors.torch.load_file(path, device="cpu"))
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a safetensors file, or is damaged or truncated: {first_line(error)}"
        ) from error


def read_torch(path: Path) -> Any:
    """Read what `torch.save` or `torch.jit.save` wrote, with `weights_only=True`.

    Of other objects than tensors and plain data nothing is kept, and none of their code is run (`inert.standins`).

    Raises:
        CheckpointError: not such a file, damaged, or a pickle with code in it, which is named; or a torch too old to
            read pickles safely.
    """
    check_torch_reads_pickles(path)
    _check_zip(path)
    names = named_globals(path)
    if _BYTES in names:  # it would be as large as its argument says
        raise CheckpointError(f"{path} is refused: it is a pickle that makes a bytearray; save the tensors alone")
    try:
        return _load_script(path, names) if is_script(path) else _load(path, names)
    except CheckpointError:
        raise
    except Exception as error:
        read = {name for _, name in standins(names)}
        refused = [name for name in forbidden_globals(path) if name not in read]
        refused = refused or re.findall(r"GLOBAL (\S+) was not an allowed", str(error))
        if refused and isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(
                f"{path} is refused: it is a pickle that refers to {', '.join(refused[:5])}, and vitcompact runs no"
                " code from a checkpoint; save the tensors alone (safetensors, or torch.save of a state dict)"
            ) from error
        raise CheckpointError(f"{path} is not a checkpoint that torch.load can read, or is damaged") from error


def _load(source: Any, names: list[str]) -> Any:
    """What was pickled. Unknown classes are taken for dictionaries first, since only those may hold the weights."""
    try:
        return _load_with(source, standins(names, PlainDict))
    except pickle.UnpicklingError:
        raise
    except (AttributeError, TypeError, ValueError):
        return _load_with(source, standins(names, Inert))


def _load_with(source: Any, allowed: list[Any]) -> Any:
    with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols
        return torch.load(source, map_location="cpu", weights_only=True)


def _load_script(path: Path, names: list[str]) -> dict[str, Tensor]:
    return script_tensors(_load_with(without_code(path), script_standins(names)))


def _check_zip(path: Path) -> None:
    """Refuse archives that unpack to much more than their size (torch.save stores, it never compresses)."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:
        raise CheckpointError(f"{path} is a damaged archive: {first_line(error)}") from error
    size = path.stat().st_size
    if unpacked > size + _ZIP_SLACK_BYTES:
        raise CheckpointError(
            f"{path} is refused: {size:,} bytes that unpack to {unpacked:,}; torch.save does not compress"
        )
