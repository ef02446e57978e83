"""YAML with wrong values, tags, aliases, or damage."""

from __future__ import annotations

import json
from typing import Any

import yaml

from .mutate import Rng, changed, damaged

BOMB = "\n".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9) if i else 'lol'}]" for i in range(9))
TAGS = (
    *("!!python/object/apply:os.system", "!!python/name:os.system", "!!binary", "!!timestamp", "!!set", "!!int", "!x"),
    *("!!float", "!!omap", "!!pairs", "!!null", "!!bool", "!!python/tuple", "!!python/object/new:os.system"),
)
SCALARS = (
    *("0x" + "f" * 5_000, "0b" + "1" * 20_000, "1" + ":59" * 5_000, "9" * 5_000, "0777", "1_000", "1e400", "1:30"),
    *(".inf", "-.inf", ".nan", "2001-01-01", "2001-99-99", "2001-01-01 10:00:00 +99:00", "~", "no", "=", "<<", "- - -"),
    *("'", "|\n  a\n  b", ">-\n  x", "&a *a", "%x", "@x", "`x`", "\x85", "\ufeff", "!!binary ////", "!<tag:x> y"),
)
"""What YAML takes for numbers, dates and more, and what it does not take."""


def hostile_yaml(document: Any, rng: Rng) -> bytes:
    """A YAML file with wrong values, tags, aliases, or damage."""
    kind = rng.randrange(9)
    if kind == 0:
        return f"{BOMB}\nratio: *x8\n".encode()
    try:
        plain = kind in (1, 8)
        text = yaml.safe_dump(document if plain else _finite(changed(document, rng)), allow_unicode=True)
    except RecursionError:
        return b"a: " + b"[" * 500
    if kind == 1:
        return _with_value(text, f"{rng.choice(TAGS)} {rng.choice(('[id]', 'x', '{}', '[1, 2]'))}", rng)
    if kind == 8:
        return _with_value(text, rng.choice(SCALARS), rng)
    if kind == 2:
        return damaged(text.encode("utf-8", "replace"), rng)
    if kind == 3:
        return text.encode("utf-8", "replace") + rng.choice(
            (b"<<: *x", b"? [a]\n: b\n", b"a: &a [*a]\n", b"---\nx: 1\n", b"\t")
        )
    return text.encode("utf-8", "replace")


def _with_value(text: str, value: str, rng: Rng) -> bytes:
    """A document in which one line ends with another value."""
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = f"{lines[at].partition(':')[0]}: {value}"
    return "\n".join(lines).encode("utf-8", "replace")


def _finite(document: Any) -> Any:
    """Without what YAML cannot write."""
    return json.loads(json.dumps(document, ensure_ascii=True).replace("\\ud800", "?"))
