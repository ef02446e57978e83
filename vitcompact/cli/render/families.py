"""The table of `families`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from vitcompact.cli.render.common import short_list, table, titled
from vitcompact.cli.spoken import spoken

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


def support_tables(document: Mapping[str, Any]) -> list[RenderableType]:
    """What of one model is compacted, and why the rest is not; layers alike share a row."""
    alike: dict[tuple[str, str, str, str], list[str]] = {}
    for layer in document["layers"]:
        can = ", ".join(layer["operators"])
        alike.setdefault((layer["kind"] or "", layer["layer"], can, layer["reason"]), []).append(layer["name"])
    found = table("layers", "class", "what", "", fold=("layers", "class", "what", ""))
    for (kind, name, can, reason), names in alike.items():
        told = Text(reason or can, style="" if reason else "green")
        found.add_row(Text(short_list(names)), Text(name), KINDS[kind], told)
    able = sum(bool(layer["operators"]) for layer in document["layers"])
    merging = document["merging"]
    tokens = "tokens can be merged" if merging["supported"] else f"tokens are not merged: {merging['reason']}"
    title = f"{document['model']}: {able} of {len(document['layers'])} layers are compacted"
    return [titled(title, found), Text(spoken(tokens))]


KINDS = {"attention": "attention", "ffn": "FFN", "": "left alone"}
