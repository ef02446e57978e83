"""Which sites of a model a selection covers, and how much of each."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from torch import nn

from vitcompact.errors import UsageError
from vitcompact.models import AttentionSite, FfnSite, Site, inspect
from vitcompact.operators import OPERATORS
from vitcompact.planning.selection import Selection
from vitcompact.plans.schema import Skipped


@dataclass(frozen=True)
class Wanted:
    """Sites with the operators that shares ask for, by name and size, in forward order; and what is left alone."""

    layers: tuple[tuple[Site, tuple[tuple[str, int], ...]], ...]
    skipped: tuple[Skipped, ...]

    @property
    def attention(self) -> list[tuple[AttentionSite, int]]:
        """Attention sites with what is asked of them: heads to hallucinate."""
        return [(site, asked[0][1]) for site, asked in self.layers if isinstance(site, AttentionSite)]

    @property
    def ffn(self) -> list[tuple[FfnSite, int]]:
        """FFN sites with what is asked of them: the rank of the output matrix."""
        return [(site, asked[0][1]) for site, asked in self.layers if isinstance(site, FfnSite)]


def check_patterns(model: nn.Module, protect: Iterable[str]) -> None:
    """Refuse patterns that match nothing: what they were meant to protect would be compacted.

    Raises:
        UsageError: one matches no layer and no block; the message has names that are near.
    """
    paths = [name for name, _ in model.named_modules() if name]
    for pattern in protect:
        if any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            continue
        sites = [site.name for site in inspect(model).sites]
        known = list(dict.fromkeys(part for name in sites for part in (name.rpartition(".")[0], name) if part))
        near = get_close_matches(pattern, known, n=3, cutoff=0.5) or known[:3]
        raise UsageError(f"`protect`: {pattern!r} matches no layer of this model; near are {', '.join(near)}")


def wanted_layers(model: nn.Module, selection: Selection) -> Wanted:
    """Apply a selection to a model.

    Raises:
        NothingToCompactError: no layer of this architecture can be compacted.
        UsageError: the options leave every layer alone.
    """
    anatomy = inspect(model)
    skipped = list(anatomy.skipped)
    layers: list[tuple[Site, tuple[tuple[str, int], ...]]] = []
    for site in anatomy.sites:
        if not selection.covers(site.name, site.kind):
            continue
        answers = {
            name: operator.requested(model, site, selection)
            for name, operator in OPERATORS.items()
            if operator.kind == site.kind
        }
        asked = tuple((name, size) for name, size in answers.items() if isinstance(size, int))
        if asked:
            layers.append((site, asked))
        else:
            skipped += [Skipped(site.name, reason) for reason in answers.values() if isinstance(reason, str)]
    for site in anatomy.sites:
        if pattern := selection.protected(site.name):
            skipped.append(Skipped(site.name, f"protected by {pattern!r}"))
    if not layers:
        raise UsageError("these options leave every layer as it is; check `only`, `protect`, `ratio` and `rank_ratio`")
    return Wanted(tuple(layers), tuple(skipped))
