"""Every reader of the package: how a hostile file for it is made, and what reads it."""

from __future__ import annotations

from . import data_readers, directory_readers, job_readers, option_readers, weights_readers
from .reader import Reader

READERS: dict[str, Reader] = {
    reader.name: reader
    for module in (weights_readers, directory_readers, job_readers, option_readers, data_readers)
    for reader in module.READERS
}
