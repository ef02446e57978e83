"""What goes wrong in training only."""

from __future__ import annotations

from vitcompact.errors import UsageError


class DivergedError(UsageError):
    """The loss was not finite for several steps in a row (exit code 2)."""
