"""The two kinds of weights file, each read without trusting it."""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from vitcompact.checkpoint.pickles import forbidden_globals
from vitcompact.checkpoint.quiet import first_line
from vitcompact.checkpoint.torch_release import check_torch_reads_pickles
from vitcompact.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself
_ZIP_SLACK_BYTES = 1 << 20


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: not one, truncated, damaged, or with an oversized header.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
    # The file starts with the length of its JSON header, an unsigned little-endian 64-bit integer. It is checked here
    # because a reader that trusts it would allocate that much.
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else None
    if length is None or length > MAX_HEADER_BYTES or length > size - 8:
        declared = "no complete header" if length is None else f"a header of {length:,} bytes"
        raise CheckpointError(
            f"{path} is not a safetensors file, or is truncated: it declares {declared}, the file has {size:,} bytes"
            f" and {MAX_HEADER_BYTES:,} is the most a header may have"
        )
    try:
        return dict(safetensors.torch.load_file(path, device="cpu"))
    except Exception as error:
        raise CheckpointError(f"{path} is a damaged or truncated safetensors file: {first_line(error)}") from error


def read_torch(path: Path) -> Any:
    """Read what `torch.save` wrote, with `weights_only=True`.

    Raises:
        CheckpointError: not such a file, damaged, or a pickle with code in it, which is named; or a torch too old to
            read pickles safely.
    """
    check_torch_reads_pickles(path)
    _check_zip(path)
    try:
        # timm's training script stores its arguments as a Namespace beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        names = forbidden_globals(path) or re.findall(r"GLOBAL (\S+) was not an allowed", str(error))
        if names and isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(
                f"{path} is refused: it is a pickle that refers to {', '.join(names[:5])}, and vitcompact runs no code"
                " from a checkpoint; save the tensors alone (safetensors, or torch.save of a state dict)"
            ) from error
        raise CheckpointError(f"{path} is not a checkpoint that torch.load can read, or is damaged") from error


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
