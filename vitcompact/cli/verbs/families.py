"""`vitcompact families`."""

from __future__ import annotations

from typing import Any

from vitcompact.cli.command import Options
from vitcompact.cli.console import Console
from vitcompact.cli.render.families import FamiliesTable
from vitcompact.models.census import support_matrix, unclassified


def run(options: Options, given: frozenset[str], console: Console) -> None:
    """Print the support matrix."""
    rows: list[dict[str, Any]] = [dict(row.to_json()) for row in support_matrix()]
    for name in unclassified():  # of a newer timm
        reason = "unknown to this release of vitcompact"
        rows.append({"attention": name, "models": None, "supported": False, "reason": reason})
    document = {"families": rows}
    console.result(document, FamiliesTable(document))
