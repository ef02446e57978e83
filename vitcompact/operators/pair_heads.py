"""Choosing kept heads and parents of one layer from the streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vitcompact.calibration.capture import SiteInput
from vitcompact.calibration.finite import check_finite
from vitcompact.calibration.least_squares import Split
from vitcompact.calibration.similarity import MapSimilarity
from vitcompact.calibration.streams import Streams
from vitcompact.calibration.sums import Sums
from vitcompact.calibration.ties import leading_digits, least
from vitcompact.layers.attention import CompactAttention
from vitcompact.layers.calls import AttentionInputs
from vitcompact.models import AttentionSite
from vitcompact.operators.pairing import CopyCosts, Parents, attention_maps, shortlist
from vitcompact.operators.sites import in_metric

PAIRING_IMAGES = (32, 128)
"""Heads are paired on a quarter of the images, within these bounds: a choice among few needs fewer than solving."""
PAIRING_CANDIDATES = 4
PAIRING_RIDGE = 1e-2


def pairing_images(streams: Streams) -> int:
    """Images on which choices among pairings are made."""
    low, high = PAIRING_IMAGES
    return min(max(streams.num_images // 4, low), high)


def pair_heads(streams: Streams, site: AttentionSite, core: CompactAttention, count: int) -> Parents:
    """Kept heads and parents: a shortlist by copy cost, then the one of least held-out error after a refit."""
    candidates = shortlist(copy_costs(streams, site, core), count, PAIRING_CANDIDATES)
    if len(candidates) == 1 or not isinstance(core.inner_norm, nn.Identity):
        return candidates[0]
    return _best_after_refit(streams, site, core, candidates)


def copy_costs(streams: Streams, site: AttentionSite, core: CompactAttention) -> Tensor:
    """Output error of giving one head the map of another, `(heads, parents)`, weighted by output sensitivity."""
    costs = CopyCosts(core.num_heads, core.v_dim)
    for _, _, mapped in with_maps(streams, site, core, pairing_images(streams), [costs]):
        costs.add(mapped.maps, _per_head(mapped.v, core))
    projection, root = core.head_projection, streams.root(site)
    found = costs.matrix(projection if root is None else root @ projection.double())
    check_finite(site.name, found)
    return leading_digits(found)


@dataclass(frozen=True)
class Mapped:
    """A call of a core with its maps `(batch, heads, queries, keys)` and values `(batch, keys, heads * v_dim)`."""

    core: CompactAttention
    inputs: AttentionInputs
    maps: Tensor
    v: Tensor
    _products: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def outputs(self, pairs: Sequence[tuple[int, int]]) -> Tensor:
        """Inputs of `proj` if head `h` takes the map of `p` for each `(h, p)` of `pairs`, side by side."""
        core, inputs, heads = self.core, self.inputs, [head for head, _ in pairs]
        outputs = torch.stack([self._product(head, parent) for head, parent in pairs], dim=2)
        own = core.beside(torch.zeros_like(outputs[:, :, :1, 0]), self.v, inputs)  # nothing, or every head's channels
        if own.shape[-1] > 1:
            outputs = outputs + own.unflatten(-1, (core.num_heads, core.v_dim))[:, :, heads]
        if core.gate is not None:
            gate = core.gate(inputs.x).sigmoid().unflatten(-1, (core.num_heads, core.v_dim))
            outputs = outputs * gate[:, :, heads]
        return core.call.restore(outputs.flatten(2), inputs)

    def _product(self, head: int, parent: int) -> Tensor:
        if (head, parent) not in self._products:
            self._products[head, parent] = self.maps[:, parent] @ _per_head(self.v, self.core)[:, head]
        return self._products[head, parent]


def with_maps(
    streams: Streams, site: AttentionSite, core: CompactAttention, num_images: int | None, into: Sequence[Sums]
) -> Iterator[tuple[SiteInput, Tensor, Mapped]]:
    """A site's calls and targets, and the maps of its heads, one batch at a time.

    Args:
        into: the statistics that are filled, as in `Streams.inputs`.
    """
    for got, target in streams.inputs(site, site.name, num_images, into):
        inputs = core.inputs(*got.args, **got.kwargs)
        q, k, v = core.project(inputs)
        yield got, target, Mapped(core, inputs, attention_maps(core, q, k, inputs), v)


def _best_after_refit(
    streams: Streams, site: AttentionSite, core: CompactAttention, candidates: list[Parents]
) -> Parents:
    own = [(head, head) for head in range(core.num_heads)]
    pairs = list(dict.fromkeys([*own, *(pair for parents in candidates for pair in parents.items())]))
    split, root = Split.empty(site.name), streams.root(site)
    for got, target, mapped in with_maps(streams, site, core, pairing_images(streams), [split]):
        split.add(mapped.outputs(pairs), in_metric(target, root), got.parts)
    outputs_dim = core.proj.out_features

    def error(choice: Parents) -> float:
        index = [pairs.index((head, choice.get(head, head))) for head in range(core.num_heads)]
        columns = torch.cat([torch.arange(i * core.v_dim, (i + 1) * core.v_dim) for i in index])
        fit = split.fit.outputs(outputs_dim, 2 * outputs_dim).select(columns)
        judge = split.judge.outputs(outputs_dim, 2 * outputs_dim).select(columns)
        return judge.error(fit.solve(PAIRING_RIDGE))

    return least(candidates, error)


def most_alike(streams: Streams, site: AttentionSite, core: CompactAttention, count: int) -> Parents:
    """Parents by likeness of the attention maps alone: the naive criterion."""
    similarity = MapSimilarity(core.num_heads)
    for _, _, mapped in with_maps(streams, site, core, pairing_images(streams), [similarity]):
        similarity.add(mapped.maps)
    return shortlist(1.0 - similarity.cosine, count, 1)[0]


def _per_head(v: Tensor, core: CompactAttention) -> Tensor:
    return v.unflatten(-1, (core.num_heads, core.v_dim)).transpose(1, 2)
