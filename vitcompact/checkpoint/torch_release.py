"""Which torch releases may read a pickled checkpoint: a requirement can be bypassed, so the reader asks as well."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.torch_version import TorchVersion

from vitcompact.errors import CheckpointError

# What pyproject.toml requires, the oldest release without a known advisory (a test compares the two).
REQUIRED_TORCH = "2.13"
# Before this release `torch.load(weights_only=True)` can be made to run code out of a hostile file: below 2.6 a
# TorchScript archive (CVE-2025-32434), below 2.10 memory that the restricted unpickler corrupts (CVE-2026-24747).
PICKLE_SAFE_TORCH = "2.10"


def check_torch_reads_pickles(path: Path) -> None:
    """Refuse a pickled checkpoint (`.pt`, `.pth`, `.bin`) on a torch that cannot read it safely.

    Pre-releases and development builds of a release count as older than it, as they do for pip.

    Raises:
        CheckpointError: the installed torch is too old.
    """
    if TorchVersion(str(torch.__version__)) < PICKLE_SAFE_TORCH:
        raise CheckpointError(
            f"{path} is refused: it is a pickle, and torch {torch.__version__} can be made to run code while it reads"
            f" one (CVE-2025-32434, CVE-2026-24747); install torch {REQUIRED_TORCH} or newer or give a safetensors file"
        )
