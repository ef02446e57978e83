"""Pages: what was found, drawn into one HTML file that loads nothing. Plain data in, text out."""

from vitcompact.reporting.draw import Document, draw
from vitcompact.reporting.html import MARK, Section, page
from vitcompact.reporting.images import heat_uri, picture_uri
from vitcompact.reporting.write import drawn_here, write_page

__all__ = [
    "MARK",
    "Document",
    "Section",
    "draw",
    "drawn_here",
    "heat_uri",
    "page",
    "picture_uri",
    "write_page",
]
