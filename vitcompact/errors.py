"""Typed errors: each carries the exit code that the command line returns for it."""

from __future__ import annotations

import re

MAX_LINES, MAX_CHARACTERS = 3, 1_500
"""Of a message, whatever a file that it speaks of may hold."""
_UNPRINTABLE = re.compile(r"[^\n -~]")


def printable(text: str) -> str:
    """A text without control characters, terminal escapes among them; lines stay."""
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0].isprintable() else _escaped(found[0]), text)


def message(text: str) -> str:
    """A text as messages have it: printable, of few lines and not endless."""
    text = printable(text)
    if text.count("\n") >= MAX_LINES:
        text = " ".join(text.split())
    if len(text) > MAX_CHARACTERS:  # what to do stands at the end
        text = f"{text[: 2 * MAX_CHARACTERS // 3]} … {text[-MAX_CHARACTERS // 4 :]}"
    return text


def _escaped(character: str) -> str:
    return " " if character == "\t" else character.encode("unicode_escape").decode()


class VitCompactError(Exception):
    """Base of every error that a user can cause; its message is shown without a traceback."""

    exit_code: int = 2

    def __init__(self, text: object = "") -> None:
        super().__init__(message(str(text)))


class UsageError(VitCompactError):
    """Wrong usage or input: a bad option, an unknown name, an output that exists (exit code 2)."""


class DataError(UsageError):
    """Images that are missing, empty or unreadable (exit code 2)."""


class NothingToCompactError(VitCompactError):
    """No attention and no FFN of this architecture can be compacted (exit code 3)."""

    exit_code = 3


class CheckpointError(VitCompactError):
    """A checkpoint that is damaged, hostile or does not match its architecture (exit code 4)."""

    exit_code = 4


class VerificationError(VitCompactError):
    """A fold or export whose output differs from the model it came from; nothing was written (exit code 5)."""

    exit_code = 5


class ThresholdError(VitCompactError):
    """A threshold given by the user was missed (exit code 6)."""

    exit_code = 6


class Interrupted(VitCompactError):
    """Stopped by the user; a resumable state may have been left behind (exit code 130)."""

    exit_code = 130


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a system or a device had no memory left; torch says so in the text of a RuntimeError."""
    text = str(error).lower()
    known = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(part in text for part in known))
