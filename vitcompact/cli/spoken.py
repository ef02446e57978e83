"""How parameters of the library are spelled on the command line, and its messages turned into words of this one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vitcompact.options.declare import Option

_NAMED = re.compile(r"`(\w+)(?:=('?)([^`]*?)\2)?`")
_FLAGS = {"images": "--data-dir", "probe_images": "--probe-data-dir"}
"""The preferred spelling of every option, by the name of the library's parameter; `cli/options.py` adds the verbs'."""


def flags_of(name: str, option: Option) -> tuple[str, ...]:
    """All spellings of an option, the preferred one first: `--batch-size`, `-b`."""
    long = tuple(f"--{spelled.replace('_', '-')}" for spelled in option.spelled or (name,))
    return (*long, f"-{option.short}") if option.short else long


def flags() -> Mapping[str, str]:
    """The preferred spelling of every option, by the name of the parameter."""
    return _FLAGS


def learn(options: Mapping[str, Option]) -> None:
    """Remember how the options of a verb are spelled."""
    _FLAGS.update({name: flags_of(name, option)[0] for name, option in options.items()})


def flagged(name: str, value: Any) -> tuple[str, ...]:
    """A parameter and its value as words of a command line; nothing where that is the default of all verbs."""
    if value in (None, False, "") or (name == "seed" and value == 0):
        return ()
    flag = flags().get(name, f"--{name.replace('_', '-')}")
    if value is True:
        return (flag,)
    if isinstance(value, Mapping):
        return flag, *(f"{key}={item}" for key, item in value.items())
    return flag, ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def spoken(text: str) -> str:
    """A text with flags instead of parameters: `ratio` is --ratio, and `resume='auto'` is --resume auto."""
    return _NAMED.sub(_flag, text)


def _flag(found: re.Match[str]) -> str:
    name, _, value = found.groups()
    if name not in flags():
        return found[0]
    return flags()[name] if value in (None, "True") else f"{flags()[name]} {value}"
