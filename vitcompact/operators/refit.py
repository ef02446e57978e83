"""Solving an attention layer's values for the maps that it has: output projection, paths, filters of the values."""

from __future__ import annotations

import torch
from torch import Tensor

from vitcompact.calibration.least_squares import Split
from vitcompact.calibration.streams import Streams
from vitcompact.calibration.ties import lower
from vitcompact.layers.attention import CompactAttention
from vitcompact.layers.no_projection import NoProjection
from vitcompact.models import AttentionSite
from vitcompact.operators import attention_fit
from vitcompact.operators.attention_fit import AttentionFit
from vitcompact.operators.filter_fit import FilterMoments


def refit(streams: Streams, site: AttentionSite, core: CompactAttention) -> tuple[float, int]:
    """Solve `proj` and the paths of a core in place; a filter of the values goes where held-out images do not want it.

    The filters are solved for the `proj` of the first solution, then `proj` and the other paths once more beside them.

    Returns:
        the held-out error relative to the target's energy, and the number of tokens fitted to.
    """
    copied = attention_fit.solution_of(core)
    fitted, rows = _fit(streams, site, core, copied)
    fitted.load_into(core)
    if core.conv is not None:
        core.conv.weight.copy_(_filters(streams, site, core, fitted.drift_share))
        filtered, _ = _fit(streams, site, core, copied)
        if filter_helps(filtered, fitted):
            fitted = filtered
            fitted.load_into(core)
        else:
            core.conv = None
    return fitted.error, rows


def filter_helps(filtered: AttentionFit, fitted: AttentionFit) -> bool:
    """Whether filters of the values lower the held-out error."""
    return lower(filtered.error, than=fitted.error)


def _fit(streams: Streams, site: AttentionSite, core: CompactAttention, prior: Tensor) -> tuple[AttentionFit, int]:
    """`proj` and the paths that are solved with it, and the number of tokens fitted to."""
    terms, split = core.solved_terms, Split.empty(site.name)
    for got, target in streams.inputs(site, site.name, into=[split]):
        phi = attention_fit.features(core, core.inputs(*got.args, **got.kwargs), terms)
        split.add(phi, target, got.parts)
    if isinstance(core.proj, NoProjection):
        return attention_fit.fit_heads(split, core.proj), split.fit.rows
    return attention_fit.fit(split, core.proj.in_features, terms, prior=prior), split.fit.rows


def _filters(streams: Streams, site: AttentionSite, core: CompactAttention, drift_share: float) -> Tensor:
    """Filters of the values `(heads, 3, 3)` for a core that is solved otherwise, from the images not held out."""
    moments = FilterMoments(core, site.name)
    for got, target in streams.inputs(site, site.name, into=[moments]):
        inputs = core.inputs(*got.args, **got.kwargs)
        q, k, v = core.project(inputs)
        phi = core.mix(q, k, v, inputs)
        plain, drifted = target.chunk(2, dim=-1)
        wanted = torch.lerp(plain, drifted, drift_share)
        for held, rows in got.parts.slices(len(phi)):
            if not held:
                moments.add(v[rows], phi[rows], wanted[rows])
    return moments.solve()
