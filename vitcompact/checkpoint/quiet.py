"""Calls into timm that neither log, nor warn, nor leak an untyped exception."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from vitcompact.errors import VitCompactError

_LOGGERS = ("timm", "huggingface_hub")


@contextmanager
def quiet_timm() -> Iterator[None]:
    """Silence the loggers and warnings of timm and of the hub client for the duration of a call.

    What matters in them reaches the user as one of our own errors or warnings.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def timm_errors(kind: type[VitCompactError], what: str) -> Iterator[None]:
    """Run quietly and turn any exception that is not ours into `kind`, with `what` before its first line."""
    with quiet_timm():
        try:
            yield
        except VitCompactError:
            raise
        except Exception as error:
            raise kind(f"{what}: {first_line(error)}") from error


def first_line(error: BaseException, limit: int = 240) -> str:
    """The first line of an exception's message (its class name where it has none), cut to `limit` characters."""
    lines = str(error).strip().splitlines()
    text = lines[0].strip() if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
