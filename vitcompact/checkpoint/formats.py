"""The two kinds of weights file, each read without trusting it."""

from __future__ import annotations

import argparse
import pickle
import re
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

_ZIP_SLACK_BYTES = 1 << 20


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: not one, truncated, damaged, or with a header longer than the file or the format's limit, which
            safetensors checks before it reads it.
    """
    try:
        return dict(safetensors.torch.load_file(path, device="cpu"))
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a safetensors file, or is damaged or truncated: {first_line(error)}"
        ) from error


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
