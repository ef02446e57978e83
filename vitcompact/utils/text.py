"""Numbers and tables as plain text, for what Python users see when they print a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape


def big(number: float) -> str:
    """A count in three digits: `22.1 M`."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"


def change(before: float, after: float) -> str:
    """Two counts and what lies between: `22.1 M to 17.7 M (-20 %)`."""
    share = f" ({100 * (after / before - 1):+.0f} %)" if before else ""
    return f"{big(before)} to {big(after)}{share}"


def fields(name: str, **values: object) -> str:
    """A short repr: numbers in four digits, and nothing for what is None."""
    shown = ", ".join(f"{key}={_short(value)}" for key, value in values.items() if value is not None)
    return f"{name}({shown})"


def some(names: Sequence[str], limit: int = 8) -> str:
    """The first few names, and how many more there are: `a, b and 3 more`."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{', '.join(names[:limit])}{more}"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def html_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A title above a table as notebooks show it; all cells are escaped."""
    top = "".join(f'<th style="text-align:left">{escape(cell)}</th>' for cell in head)
    lines = ("".join(f'<td style="text-align:left">{escape(cell)}</td>' for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div><strong>{escape(title)}</strong><table><tr>{top}</tr>{body}</table></div>"


def pairs_html(name: str, values: Mapping[str, object]) -> str:
    """Names with values as notebooks show them, without those that are None."""
    rows = [(key.replace("_", " "), _short(value)) for key, value in values.items() if value is not None]
    return html_table(name, ("", ""), rows)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
