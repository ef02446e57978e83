"""Which of several processes this one is, as torchrun says it in the environment. torch itself is not needed for that.

Source: https://docs.pytorch.org/docs/stable/elastic/run.html, "Environment Variables".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vitcompact.errors import UsageError

_NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
_ADVICE = "start all processes by torchrun, or unset WORLD_SIZE to run in one"
_PORTS = 65535


@dataclass(frozen=True)
class Place:
    """One process among `world`: its `rank` in all, `local_rank` on this machine, both from 0."""

    rank: int
    world: int
    local_rank: int


def place_of(environment: Mapping[str, str]) -> Place | None:
    """The place of a process in its run; None where it runs alone.

    Raises:
        UsageError: the environment names several processes, but not which of them this one is or where the first is.
    """
    if environment.get("WORLD_SIZE", "").strip() in ("", "1"):
        return None
    world = _number(environment, "WORLD_SIZE", 1)
    if missing := [name for name in _NEEDED if not environment.get(name, "").strip()]:
        raise UsageError(f"WORLD_SIZE is {world} in the environment, without {', '.join(missing)}: {_ADVICE}")
    _number(environment, "MASTER_PORT", 1, _PORTS)
    rank = _number(environment, "RANK", 0, world - 1)
    local = _number(environment, "LOCAL_RANK", 0, rank) if environment.get("LOCAL_RANK", "").strip() else rank
    return Place(rank, world, local)


def _number(environment: Mapping[str, str], name: str, least: int, most: int | None = None) -> int:
    text = environment[name].strip()
    number = int(text) if text.isdecimal() and text.isascii() and len(text) < 10 else -1
    if number < least or (most is not None and number > most):
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise UsageError(f"{name} in the environment must be a whole number {limits}, got {text[:40]!r}: {_ADVICE}")
    return number
