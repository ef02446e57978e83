"""Statistics of one site in the converted stream."""

from __future__ import annotations

import torch
from torch import Tensor

from vitcompact.calibration.least_squares import Moments, Split
from vitcompact.calibration.moments import QkMoments
from vitcompact.calibration.streams import Streams
from vitcompact.layers.attention import CompactAttention
from vitcompact.models import AttentionSite, FfnSite
from vitcompact.operators import attention_fit


def qk_moments(streams: Streams, site: AttentionSite, core: CompactAttention) -> QkMoments:
    """Second moments of a core's queries and keys in the converted stream."""
    moments = QkMoments(site.name)
    for got, _ in streams.inputs(site, site.name, into=[moments]):
        q, k, _ = core.project(core.inputs(*got.args, **got.kwargs))
        moments.add(q, k)
    return moments


def head_covariance(streams: Streams, site: AttentionSite, core: CompactAttention) -> Tensor:
    """Covariance `(heads, v_dim, v_dim)` of the heads' outputs in the converted stream."""
    moments = Moments(site.name)
    for got, _ in streams.inputs(site, site.name, into=[moments]):
        moments.add(attention_fit.features(core, core.inputs(*got.args, **got.kwargs), ()))
    blocks = moments.covariance.unflatten(0, (core.num_heads, -1)).unflatten(2, (core.num_heads, -1))
    return torch.stack([blocks[head, :, head] for head in range(core.num_heads)])


def ffn_statistics(streams: Streams, site: FfnSite, weight: Tensor | None = None, *, targets: bool = True) -> Split:
    """Features are the hidden units `(.., hidden)`, or the outputs before the bias `(.., outputs)` given `weight`.

    Args:
        targets: nothing can be solved without them; covariances need none.
    """
    split = Split.empty(site.name)
    for got, target in streams.inputs(site, site.output, into=[split]):
        x = got.x.movedim(site.channel_dim, -1)
        phi = x if weight is None else x @ weight.T.to(x.dtype)
        split.add(phi, target if targets else target[..., :0], got.parts, got.weights)
    return split
