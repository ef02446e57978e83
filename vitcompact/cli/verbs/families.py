"""`vitcompact families`."""

from __future__ import annotations

from typing import Any

from vitcompact.analysis.support import support
from vitcompact.checkpoint import SourceOptions, load_source
from vitcompact.checkpoint.source import is_timm_name
from vitcompact.cli.command import Options, of_kind
from vitcompact.cli.console import Console
from vitcompact.cli.render.families import FamiliesTable, support_tables
from vitcompact.models.census import support_matrix, unclassified


def run(options: Options, given: frozenset[str], console: Console) -> None:
    """Print the support matrix, or what of MODEL is compacted."""
    rows: list[dict[str, Any]] = [dict(row.to_json()) for row in support_matrix()]
    if options.source is not None:
        document = _of_model(options, rows)
        console.result(document, *support_tables(document))
        return
    for name in unclassified():  # of a newer timm
        reason = "unknown to this release of vitcompact"
        rows.append({"attention": name, "models": None, "supported": False, "reason": reason})
    document = {"families": rows}
    console.result(document, FamiliesTable(document))


def _of_model(options: Options, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What of a model is compacted, and those rows of the matrix that it has. Of a timm name no weights are needed."""
    untrained = options.random_weights or is_timm_name(options.source)
    reading = of_kind(SourceOptions, options, random_weights=untrained)
    found = support(load_source(options.source, reading).model).to_json()
    classes = {layer["layer"] for layer in found["layers"]}
    return {"families": [row for row in rows if row["attention"] in classes], "model": options.source, **found}
