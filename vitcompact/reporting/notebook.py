"""How results look in a notebook: a line and the table of before and after, in the notebook's own colours."""

from __future__ import annotations

from vitcompact.reporting import measures
from vitcompact.reporting.draw import Document
from vitcompact.utils.text import html_table


def fragment(title: str, document: Document) -> str:
    """HTML without style sheet.

    Args:
        title: one line, plain text.
        document: as `draw` takes it.
    """
    rows = [row.cells for row in measures.rows_of(document["measured"])] if document.get("measured") else []
    return html_table(title, ("", *measures.COLUMNS), rows)
