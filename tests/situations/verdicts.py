"""Runs situations, each in a folder of its own: pass, rough or fail, with the reason."""

from __future__ import annotations

import importlib
import os
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from .place import SITUATIONS, Place, RoughError, Situation

_MODULES = (
    *("originals", "recorded", "shapes", "wrappers", "libraries", "oddities", "modules", "saving", "tools"),
    *("pictures", "more"),
)


class Verdict(NamedTuple):
    """What came of a situation."""

    situation: Situation
    verdict: str
    reason: str = ""


def situations() -> list[Situation]:
    """All of them, of one kind after the other."""
    for name in _MODULES:
        importlib.import_module(f"{__package__}.{name}")
    return sorted(SITUATIONS, key=lambda situation: situation.kind)


def judge(situation: Situation, folder: Path) -> Verdict:
    """Tell a situation in an empty folder."""
    torch.manual_seed(0)
    os.environ["COLUMNS"] = "160"
    try:
        situation.tell(Place(folder))
    except RoughError as rough:
        return Verdict(situation, "rough", str(rough))
    except pytest.skip.Exception as skipped:
        return Verdict(situation, "skipped", str(skipped))
    except Exception as error:  # whatever a new user may see
        place = traceback.extract_tb(error.__traceback__)[-1]
        return Verdict(
            situation, "FAIL", f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
        )
    return Verdict(situation, "pass")


def judged(words: str = "") -> Iterator[Verdict]:
    """Those whose kind or title has one of these, which are parted by commas."""
    wanted = [part.strip().lower() for part in words.split(",")]
    for situation in situations():
        if any(part in f"{situation.kind}: {situation.title}".lower() for part in wanted):
            with tempfile.TemporaryDirectory() as folder:
                yield judge(situation, Path(folder))
