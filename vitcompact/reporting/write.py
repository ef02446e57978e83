"""From a document to a page on disk."""

from __future__ import annotations

from pathlib import Path

from vitcompact.errors import UsageError
from vitcompact.reporting.draw import Document, draw
from vitcompact.reporting.html import MARK
from vitcompact.utils.files import write_file
from vitcompact.utils.reading import user_path

ENDINGS = (".html", ".htm")


def write_page(document: Document, path: str | Path) -> Path:
    """Draw a page into a file; a page of ours that is there is replaced.

    Raises:
        UsageError: no .html file, a directory, a file of somebody else, or one that cannot be written.
    """
    path = user_path(path)
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"a page is a .html file, got {path.name!r}")
    if path.is_dir():
        raise UsageError(f"{path} is a directory; give the name of a file")
    if path.exists() and not drawn_here(path):
        raise UsageError(f"{path} is not overwritten: it exists and was not drawn by vitcompact; give another name")
    write_file(path, draw(document))
    return path


def drawn_here(path: Path) -> bool:
    """Whether a file says at its beginning that it is a page of ours, or a drawing of `analyze`."""
    try:
        with path.open("rb") as stream:
            beginning = stream.read(512)
    except OSError:
        return False
    return any(mark in beginning for mark in (MARK[6:-1].encode(), b"Software\0vitcompact"))
