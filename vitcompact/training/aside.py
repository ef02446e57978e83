"""Earlier runs in the folder of a state: set aside when another begins there, and forgotten when it has ended."""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from pathlib import Path

from vitcompact.errors import CheckpointError, UsageError
from vitcompact.training.course import COURSE, is_course
from vitcompact.training.saved import saved_run
from vitcompact.training.state import BEST_NAME, STATE_NAME, is_state, load_state
from vitcompact.utils.files import disk_errors, link_or_copy, publish, staged
from vitcompact.utils.reading import read_json

OURS = (STATE_NAME, BEST_NAME, *COURSE)
"""Files of a run in the folder of its state."""
OPTIONS_NAME = "options.json"
"""What the run was asked for, where who began it says so: not needed to go on, but to say it again."""
EARLIER = "earlier"
"""Folder beside a state, with that of the run before which did not end."""
REPLACED = "replaced"
"""Folder beside a state, with that of a run which ended, until the run that replaces it has."""

logger = logging.getLogger("vitcompact")


def set_aside(folder: Path) -> None:
    """Move what a run left that did not end to `EARLIER`, from where it can be resumed; one that ended to `REPLACED`.

    Raises:
        UsageError: the disk refuses, or somebody's own files are where it goes.
    """
    there = [path for path in (folder / name for name in OURS) if path.exists()]
    options = folder / OPTIONS_NAME
    if not any(path.name in (STATE_NAME, BEST_NAME) for path in there):
        return
    unfinished = holds_unfinished(folder)
    kept = folder / (EARLIER if unfinished else REPLACED)
    if kept.exists() and not _is_aside(kept):
        raise UsageError(f"{kept} is where an earlier state goes, and it holds other files: move it away")
    there += [options] if options.exists() and is_ours(options) else []
    with disk_errors(kept), staged(kept) as aside:
        for path in there:
            link_or_copy(path, aside / path.name)
        publish(aside, kept)
    if unfinished:
        logger.warning("a run that did not end left its state: it is kept, and `resume=%r` continues it", str(kept))
    for path in there:
        path.unlink()


def holds_unfinished(folder: Path) -> bool:
    """Whether a folder has the state of a run that did not end."""
    state = folder / STATE_NAME
    return state.exists() and not _is_finished(state)


def forget(folder: Path) -> None:
    """Remove what was set aside, and nothing else."""
    if folder.is_dir() and _is_aside(folder):
        with suppress(OSError):
            shutil.rmtree(folder)


def is_ours(path: Path) -> bool:
    """Whether a file with the name of one of `OURS`, or `OPTIONS_NAME`, is one."""
    if path.name == OPTIONS_NAME:
        try:
            return isinstance(read_json(path)["options"], dict)
        except (OSError, ValueError, TypeError, KeyError):
            return False
    return is_course(path) if path.name in COURSE else is_state(path)


def _is_aside(folder: Path) -> bool:
    """Whether a folder holds nothing but what was set aside."""
    return folder.is_dir() and all(path.name in (*OURS, OPTIONS_NAME) and is_ours(path) for path in folder.iterdir())


def _is_finished(path: Path) -> bool:
    """Whether a state is of a run that ended; one that cannot be read is not taken for that."""
    try:
        return saved_run(load_state(path, tensors=False)).plan.finished
    except CheckpointError:
        return False
