"""From a document to a file, by the file's ending."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitcompact.errors import UsageError
from vitcompact.reporting import draw, drawn_here
from vitcompact.utils.files import claimed, write_file
from vitcompact.utils.reading import user_path

HTML, PNG = (".html", ".htm"), (".png",)


def check_report(path: str | Path, *, png: bool = True) -> None:
    """Refuse a report that could not be written; call it before the long work.

    Args:
        png: whether this verb's report can be a picture too.

    Raises:
        UsageError: neither .html nor .png, a directory, a file that is no report, a PNG without matplotlib, or a
            place where nothing can be written.
    """
    path = _checked(path, png)
    with claimed(path):  # the folder can be made, or is there, and takes files
        pass


def _checked(path: str | Path, png: bool = True) -> Path:
    path = user_path(path)
    ending = path.suffix.lower()
    if ending not in HTML and not (png and ending in PNG):
        wanted = "a .html or a .png file" if png else "HTML here: give a name that ends in .html"
        raise UsageError(f"--report {path}: a report is {wanted}")
    if path.is_dir():
        raise UsageError(f"--report {path} is a directory; give the name of a file")
    if path.exists() and not drawn_here(path):
        raise UsageError(
            f"--report {path} is not overwritten: it exists and was not drawn by vitcompact; give another name"
        )
    if ending in PNG and importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            f"--report {path} needs matplotlib: pip install 'vitcompact[plot]', or give a .html file instead"
        )
    return path


def write_report(document: Mapping[str, Any], path: str | Path) -> Path:
    """Draw a document of `reporting`; a PNG has what `AnalysisReport.to_json` gives.

    Args:
        path: a .html or .png file; an existing report is replaced.

    Raises:
        UsageError: see `check_report`; or the file cannot be written.
    """
    path = _checked(path)
    content: str | bytes
    if path.suffix.lower() in PNG:
        from vitcompact.cli.report.png import draw_png

        content = draw_png(document)
    else:
        content = draw(document)
    write_file(path, content)
    return path
