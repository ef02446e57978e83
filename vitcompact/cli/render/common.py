"""Pieces that several tables are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, JustifyMethod, OverflowMethod
from rich.table import Table
from rich.text import Text

from vitcompact.utils.numbers import UNKNOWN, big, change, interval, number, percent, size, tiny

__all__ = [
    "UNKNOWN",
    "big",
    "change",
    "cost_table",
    "interval",
    "number",
    "pairs",
    "percent",
    "short_list",
    "size",
    "skipped_tables",
    "table",
    "tiny",
    "titled",
]


def table(*columns: str, right: Sequence[str] = (), whole: Sequence[str] = (), fold: Sequence[str] = ()) -> Table:
    """An empty table.

    Args:
        *columns: headings.
        right: columns of numbers, which never wrap.
        whole: columns of names that never wrap.
        fold: columns whose long words break at any letter.
    """
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        justify: JustifyMethod = "right" if name in right else "left"
        overflow: OverflowMethod = "fold" if name in fold else "ellipsis"
        found.add_column(Text(name), justify=justify, no_wrap=name in (*right, *whole), overflow=overflow)
    return found


def titled(title: str, found: Table) -> Group:
    """A table under its title, which may be longer than the table is wide."""
    return Group(Text(title, style="bold"), found)


def pairs(title: str, rows: Sequence[tuple[str, str]]) -> Group:
    """Names with values; those that are not known have no row."""
    found = Table(box=None, show_header=False, pad_edge=False)
    found.add_column(style="dim", no_wrap=True)
    found.add_column(overflow="fold")
    for name, value in rows:
        if value != UNKNOWN:
            found.add_row(Text(name), Text(value))
    return titled(title, found)


def cost_table(title: str, before: Mapping[str, int], after: Mapping[str, int]) -> Group:
    """Parameters and MACs of the original and of the folded result, and bytes of their files where they are known."""
    found = table("", "original", "compact", "change", right=("original", "compact", "change"))
    for key, label in (("params", "parameters"), ("macs", "MACs per image")):
        found.add_row(label, big(before[key]), big(after[key], like=before[key]), change(before[key], after[key]))
    if before.get("bytes") and after.get("bytes"):
        found.add_row("file size", size(before["bytes"]), size(after["bytes"]), change(before["bytes"], after["bytes"]))
    return titled(title, found)


def skipped_tables(skipped: Sequence[Mapping[str, Any]]) -> list[Group]:
    """Layers left as they are, by reason; nothing where there are none."""
    if not skipped:
        return []
    by_reason: dict[str, list[str]] = {}
    for item in skipped:
        by_reason.setdefault(str(item["reason"]), []).append(str(item["name"]))
    found = table("layers", "reason", fold=("layers", "reason"))
    for reason, names in by_reason.items():
        found.add_row(Text(short_list(names)), Text(reason))
    return [titled("Left unchanged", found)]


def short_list(names: Sequence[str], limit: int = 3) -> str:
    """The first few names, and how many more there are."""
    if len(names) <= limit:
        return ", ".join(names)
    return f"{', '.join(names[: limit - 1])} … {names[-1]} ({len(names)} layers)"
