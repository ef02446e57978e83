"""Statistics of every site of a model, streamed in one pass over the images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from vitcompact.calibration.least_squares import Moments
from vitcompact.calibration.similarity import MapSimilarity
from vitcompact.models import AttentionSite, FfnSite
from vitcompact.models.cores import whole_core
from vitcompact.models.layer_scale import output_scale
from vitcompact.operators.attention_fit import features
from vitcompact.operators.pairing import CopyCosts, attention_maps
from vitcompact.utils.hooks import hooked
from vitcompact.utils.processes import Processes


class AttentionWatch:
    """Likeness of the maps, and what copying them would cost, of one attention layer."""

    def __init__(self, model: nn.Module, site: AttentionSite) -> None:
        self.core = whole_core(model, site)
        self.similarity = MapSimilarity(self.core.num_heads)
        self.costs = CopyCosts(self.core.num_heads, self.core.v_dim)
        self.outputs, self.whole = Moments(site.name), site.target is None

    def hook(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        """A forward hook of the attention layer."""
        inputs = self.core.inputs(*args, **kwargs)
        q, k, v = self.core.project(inputs)
        maps = attention_maps(self.core, q, k, inputs)
        self.similarity.add(maps)
        self.costs.add(maps, v.unflatten(-1, (self.core.num_heads, self.core.v_dim)).transpose(1, 2))
        self.outputs.add(self.core(*args, **kwargs) if self.whole else self.core.proj(features(self.core, inputs, ())))

    def total_over(self, processes: Processes) -> None:
        """See `calibration.sums.Sums`."""
        for statistics in (self.similarity, self.costs, self.outputs):
            statistics.total_over(processes)


class FfnWatch:
    """Moments of one FFN's output, its LayerScale applied."""

    def __init__(self, model: nn.Module, site: FfnSite) -> None:
        self.scale, self.channel_dim = output_scale(model, site.scale), site.channel_dim
        self.outputs = Moments(site.name)

    def hook(self, _: nn.Module, __: Any, output: Tensor) -> None:
        """A forward hook of the output layer."""
        rows = output.movedim(self.channel_dim, -1)
        self.outputs.add(rows if self.scale is None else rows * self.scale.to(rows))

    def total_over(self, processes: Processes) -> None:
        """See `calibration.sums.Sums`."""
        self.outputs.total_over(processes)


@contextmanager
def watching(
    model: nn.Module, attention: list[AttentionSite], ffn: list[FfnSite]
) -> Iterator[tuple[dict[str, AttentionWatch], dict[str, FfnWatch]]]:
    """Collect statistics of the given sites while the model runs inside the context."""
    heads = {site.name: AttentionWatch(model, site) for site in attention}
    outputs = {site.name: FfnWatch(model, site) for site in ffn}
    taps = {site.output: outputs[site.name].hook for site in ffn}
    with hooked(model, {name: watch.hook for name, watch in heads.items()}, with_kwargs=True), hooked(model, taps):
        yield heads, outputs
