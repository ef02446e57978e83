"""From an analysis document to a file, by the file's ending."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitcompact.cli.report.html import draw_html
from vitcompact.errors import UsageError
from vitcompact.utils.files import write_file

HTML, PNG = (".html", ".htm"), (".png",)


def check_report(path: str | Path) -> None:
    """Refuse a report that could not be written; call it before a long analysis.

    Raises:
        UsageError: neither .html nor .png, a directory, a file that is no report, or a PNG without matplotlib.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in HTML + PNG:
        raise UsageError(f"--report {path}: a report is a .html or a .png file")
    if path.is_dir():
        raise UsageError(f"--report {path} is a directory; give the name of a file")
    if path.exists() and not _is_report(path):
        raise UsageError(
            f"--report {path} is not overwritten: it exists and was not drawn by vitcompact; give another name"
        )
    if path.suffix.lower() in PNG and importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            f"--report {path} needs matplotlib: pip install 'vitcompact[plot]', or give a .html file instead"
        )


def _is_report(path: Path) -> bool:
    """Whether a file says at its beginning that it was drawn here."""
    try:
        with path.open("rb") as stream:
            beginning = stream.read(512)
    except OSError:
        return False
    return any(mark in beginning for mark in (b'name="generator" content="vitcompact"', b"Software\0vitcompact"))


def write_report(document: Mapping[str, Any], path: str | Path) -> Path:
    """Draw what `AnalysisReport.to_json` gave.

    Args:
        document: the analysis.
        path: a .html or .png file; an existing report is replaced.

    Raises:
        UsageError: see `check_report`; or the file cannot be written.
    """
    check_report(path)
    path = Path(path).expanduser()
    content: str | bytes
    if path.suffix.lower() in PNG:
        from vitcompact.cli.report.png import draw_png

        content = draw_png(document)
    else:
        content = draw_html(document)
    write_file(path, content)
    return path
