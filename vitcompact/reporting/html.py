"""Pieces of pages: the frame, sections, tables. All text that comes from elsewhere is escaped here or by who calls."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from vitcompact.errors import printable
from vitcompact.reporting.style import style_sheet

MARK = '<meta name="generator" content="vitcompact">'
"""What a page of ours has near its beginning."""
FEW = 4
"""Columns that a phone has room for."""


@dataclass(frozen=True)
class Section:
    """One part of a page.

    Attributes:
        title: plain text; none for what stands right below the page's title.
        body: HTML.
        text: what is seen, in plain text.
    """

    title: str
    body: str
    text: str = ""

    def __str__(self) -> str:
        title = f"<h2>{escape(self.title)}</h2>" if self.title else ""
        text = f"<p>{escape(self.text)}</p>" if self.text else ""
        return f"<section>{title}{text}{self.body}</section>"


def page(title: str, lead: str, sections: Iterable[Section | None]) -> str:
    """A whole HTML file: no script, no link, and a policy under which nothing could be loaded.

    Args:
        title, lead: plain text.
        sections: those that are None are left out.
    """
    style = style_sheet()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    # Styles of single elements (widths of bars) are attributes, which a hash does not cover.
    policy = f"default-src 'none'; img-src data:; style-src-elem 'sha256-{digest}'; style-src-attr 'unsafe-inline'"
    return printable(
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{MARK}'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body><header><h1>{escape(title)}</h1>"
        f'<p class="lead">{escape(lead)}</p></header>'
        f"{''.join(str(section) for section in sections if section is not None)}</body></html>\n"
    )


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]], text: int | None = None) -> str:
    """A table of plain texts whose columns after the first `text` ones are numbers.

    Where it is too wide it scrolls; on a phone, each row of one of more than `FEW` columns is a list of its cells.
    """
    text = len(head) if text is None else text
    many = len(head) > FEW

    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = ("" if i < text else ' class="number"' for i in range(len(row)))
        named = (f' data-name="{escape(name)}"' if many and tag == "td" and name else "" for name in head)
        parts = zip(kinds, named, row, strict=True)
        return "".join(f"<{tag}{kind}{name}>{escape(cell)}</{tag}>" for kind, name, cell in parts)

    lines = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    kind = ' class="many"' if many else ""
    return f'<div class="wide"><table{kind}><tr>{cells("th", head)}</tr>{lines}</table></div>'


def legend(names: Sequence[str]) -> str:
    """Names of series beside their colours."""
    items = (f'<span><i class="s{i}"></i>{escape(name)}</span>' for i, name in enumerate(names))
    return f'<div class="legend">{"".join(items)}</div>'


def image(uri: str, what: str) -> str:
    """A picture, enlarged without smoothing; `what` is its description."""
    return f'<img class="plain" src="{escape(uri)}" alt="{escape(what)}" title="{escape(what)}">'
