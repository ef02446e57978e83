"""The last step of every layer, whatever operators it had: its outputs are solved again for what is left."""

from __future__ import annotations

from vitcompact.calibration.streams import Streams
from vitcompact.models import AttentionSite, Site
from vitcompact.operators.neurons import solve_units
from vitcompact.operators.refit import refit
from vitcompact.operators.sites import SolvedAttention, SolvedFfn, SolvedSite, Solver


def opened(streams: Streams, site: Site, solver: Solver) -> SolvedSite:
    """A layer of the converted stream that operators may be applied to."""
    if isinstance(site, AttentionSite):
        return SolvedAttention(streams, site, solver)
    return SolvedFfn(streams, site, solver)


def finish(layer: SolvedSite) -> None:
    """Solve `proj` with the paths of an attention layer, or the output of an FFN that no operator has solved."""
    if layer.naive:
        return
    if isinstance(layer, SolvedAttention):
        layer.error, rows = refit(layer.streams, layer.site, layer.core)
        layer.rows_per_unknown = rows / layer.core.attn_dim
    elif isinstance(layer, SolvedFfn) and not layer.solved:
        solve_units(layer, layer.weight.shape[1])
