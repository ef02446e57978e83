"""The table of `families`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from vitcompact.cli.render.common import table, titled

_NUMBERS = 26  # columns of the terminal that counts, answers and gaps take
_READABLE = 20  # the least that is left for a reason


@dataclass(frozen=True)
class FamiliesTable:
    """The support matrix; names of classes stay whole where the terminal is wide enough."""

    document: Mapping[str, Any]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        rows = self.document["families"]
        found = table("attention", "models", "supported", "reason", right=("models",), fold=("attention", "reason"))
        longest = max((len(row["attention"]) for row in rows), default=0)
        names = min(longest, max(_READABLE, options.max_width - _NUMBERS - _READABLE))
        found.columns[0].width = names
        found.columns[-1].width = max(_READABLE, options.max_width - _NUMBERS - names)
        for row in rows:
            supported = Text("yes", style="green") if row["supported"] else Text("no", style="dim")
            models = "?" if row["models"] is None else str(row["models"])
            found.add_row(Text(row["attention"]), models, supported, Text(row["reason"] or ""))
        count = sum(bool(row["supported"]) for row in rows)
        yield titled(f"Attention classes of the installed timm: {count} of {len(rows)} supported", found)
