"""The table of `compare`: a row for each model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType

from vitcompact.cli.render.common import table, titled
from vitcompact.reporting.compared import COLUMNS, rows_of


def compare_tables(document: Mapping[str, Any]) -> list[RenderableType]:
    """Scores, speed and size of all models, the first of which is what the others are compared with."""
    found = table("", *COLUMNS, right=COLUMNS, fold=("",))
    for name, *cells in rows_of(document["models"]):
        found.add_row(name, *cells)
    return [titled(f"Compared with {document['models'][0]['name']}", found)]
