"""Which sites of a model a selection covers, and how much of each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vitcompact.errors import UsageError
from vitcompact.layers.pointwise import matrix
from vitcompact.models import AttentionSite, FfnSite, family_named, inspect
from vitcompact.operators.factorize import rank_for
from vitcompact.operators.pairing import num_hallucinated
from vitcompact.plan.schema import Skipped
from vitcompact.planning.selection import Selection


@dataclass(frozen=True)
class Wanted:
    """Attention sites with their number of hallucinated heads, FFN sites with their rank, and what is left alone."""

    attention: tuple[tuple[AttentionSite, int], ...]
    ffn: tuple[tuple[FfnSite, int], ...]
    skipped: tuple[Skipped, ...]


def wanted_layers(model: nn.Module, selection: Selection) -> Wanted:
    """Apply a selection to a model.

    Raises:
        NothingToCompactError: no layer of this architecture can be compacted.
        UsageError: the options leave every layer alone.
    """
    anatomy = inspect(model)
    skipped = list(anatomy.skipped)
    attention, ffn = [], []
    for site in anatomy.attention:
        if selection.covers(site.name, "heads"):
            heads = family_named(site.family).parts(model.get_submodule(site.name)).num_heads
            if number := num_hallucinated(selection.ratio, heads):
                attention.append((site, number))
            else:
                skipped.append(Skipped(site.name, f"ratio {selection.ratio:g} of {heads} heads is less than one head"))
    for output in anatomy.ffn:
        if selection.covers(output.name, "ffn"):
            weight, _ = matrix(model.get_submodule(output.output))
            if rank := rank_for(selection.rank_ratio, weight.shape[1], weight.shape[0]):
                ffn.append((output, rank))
            else:
                reason = f"rank ratio {selection.rank_ratio:g} would not make it smaller"
                skipped.append(Skipped(output.name, reason))
    for name in [*(site.name for site in anatomy.attention), *(site.name for site in anatomy.ffn)]:
        if pattern := selection.protected(name):
            skipped.append(Skipped(name, f"protected by {pattern!r}"))
    if not attention and not ffn:
        raise UsageError("these options leave every layer as it is; check `only`, `protect`, `ratio` and `rank_ratio`")
    return Wanted(tuple(attention), tuple(ffn), tuple(skipped))
