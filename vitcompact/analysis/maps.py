"""Attention maps on some pictures: of the original's heads, of their parents, and of the heads of a compacted model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitcompact.analysis.report import LayerReport
from vitcompact.layers.attention import CompactAttention
from vitcompact.models import AttentionSite
from vitcompact.models.cores import grid_size_of, whole_core
from vitcompact.operators.merge import stop_merging
from vitcompact.operators.pairing import attention_maps
from vitcompact.reporting import heat_uri
from vitcompact.utils.copies import copy_of
from vitcompact.utils.hooks import hooked

HEADS = 4
"""Heads that are shown of a layer, those least like their parents first."""

Grids = Tensor
"""`(images, heads, height, width)`: how much attention every place of the key grid gets."""


class MapTap:
    """A forward hook that keeps the maps of an attention layer, as far as they lie on the picture.

    Attributes:
        grids: of the last call, heads in the original's order; None for windows and other maps without a grid.
    """

    def __init__(self, core: CompactAttention, model: nn.Module, images: int) -> None:
        self.core, self.images = core, images
        self.prefix = int(getattr(model, "num_prefix_tokens", 0) or 0)
        self.asks = getattr(model, "cls_token", None) is not None and self.prefix > 0
        self.size = grid_size_of(model)
        self.grids: Grids | None = None

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inputs = self.core.inputs(*args, **kwargs)
        q, k = self.core.project(inputs)[:2]
        maps = attention_maps(self.core, q, k, inputs)
        grid = inputs.key_grid or self.size
        if grid is None or len(maps) != self.images or maps.shape[-1] != self.prefix + grid[0] * grid[1]:
            return
        rows = maps[:, :, 0] if self.asks else maps[:, :, self.prefix :].mean(dim=2)
        whole = torch.stack([self._of_head(head, rows) for head in range(self.core.num_heads)], dim=1)
        self.grids = whole[..., self.prefix :].unflatten(-1, grid).float().cpu()

    def _of_head(self, head: int, rows: Tensor) -> Tensor:
        """The row of one head, hallucinated or not: its parent's, plus the mean of its paths over the channels."""
        layout = self.core.layout
        if head in layout.maps:
            return rows[:, layout.maps.index(head)]
        parent = next(i for i, children in enumerate(layout.children) if head in children)
        row: Tensor = rows[:, parent]
        start = layout.heads.index(head) * self.core.v_dim
        place = slice(start, start + self.core.v_dim)
        if self.core.gamma is not None:
            row = row + self.core.gamma[place].mean() / row.shape[-1]
        if self.core.beta is not None and not self.asks:  # the class token's own place is not on the picture
            row = row + self.core.beta[place].mean() / row.shape[-1]
        return row


@torch.no_grad()
def attention_pictures(
    model: nn.Module,
    images: Tensor,
    sites: Iterable[AttentionSite],
    layers: Iterable[LayerReport],
    compacted: nn.Module | None = None,
) -> dict[str, Any] | None:
    """Maps of heads on `images (n, channels, height, width)`, as `reporting` draws them, without the pictures.

    Of a layer that hallucinates heads: their original maps, their parents', and those that `compacted` makes. Of
    another one that `compacted` has changed: the map that changed most. Without `compacted`: the two maps most alike.
    """
    found = {site.name: site for site in sites}
    before = _tapped(model, images, {name: whole_core(model, site) for name, site in found.items()})
    after: Mapping[str, Grids] = {}
    if compacted is not None:
        still = copy_of(compacted).eval()
        stop_merging(still)  # with all tokens, so that maps lie on the picture
        cores = {name: still.get_submodule(name) for name in found}
        after = _tapped(still, images, {n: core for n, core in cores.items() if isinstance(core, CompactAttention)})
    known = [layer for layer in layers if layer.name in before]
    drawn = [_layer(layer, before[layer.name], after.get(layer.name), compacted) for layer in known]
    shown = [layer for layer in drawn if layer["heads"]]
    if not shown:
        return None
    asks = getattr(model, "cls_token", None) is not None
    query = "What the class token attends to." if asks else "How much attention each place gets, over all queries."
    return {"query": query, "layers": shown}


def _tapped(model: nn.Module, images: Tensor, cores: Mapping[str, CompactAttention]) -> dict[str, Grids]:
    taps = {name: MapTap(core, model, len(images)) for name, core in cores.items()}
    with hooked(model, taps, with_kwargs=True):
        model(images)
    return {name: tap.grids for name, tap in taps.items() if tap.grids is not None}


def _layer(layer: LayerReport, before: Grids, after: Grids | None, compacted: nn.Module | None) -> dict[str, Any]:
    """Heads of one layer with their maps."""
    pairs = sorted(layer.hallucinated, key=lambda pair: pair.similarity)
    heads = []
    for pair in pairs[:HEADS]:
        parent = pair.parents[0]
        rows = [("original", before[:, pair.head]), (f"parent {parent}", before[:, parent])]
        if after is not None:
            rows.append(("hallucinated", after[:, pair.head]))
        title = f"head {pair.head} from head {parent} (cosine {pair.similarity:.2f})"
        heads.append({"head": pair.head, "title": title, "rows": _rows(rows)})
    if not pairs and after is not None:
        change = 1 - torch.cosine_similarity(before.flatten(2), after.flatten(2), dim=-1).mean(dim=0)
        head = int(change.argmax())
        title = f"head {head}, whose map changed most (cosine {1 - float(change[head]):.3f})"
        rows = [("original", before[:, head]), ("compacted", after[:, head])]
        heads.append({"head": head, "title": title, "rows": _rows(rows)})
    elif not pairs and compacted is None and layer.num_heads > 1:
        alike = torch.tensor(layer.matrix).fill_diagonal_(-2.0)
        first, second = divmod(int(alike.argmax()), layer.num_heads)
        title = f"heads {first} and {second}, most alike (cosine {float(alike[first, second]):.2f})"
        rows = [(f"head {first}", before[:, first]), (f"head {second}", before[:, second])]
        heads.append({"head": first, "title": title, "rows": _rows(rows)})
    return {"name": layer.name, "heads": heads, "more": max(len(pairs) - HEADS, 0)}


def _rows(rows: list[tuple[str, Tensor]]) -> list[dict[str, Any]]:
    """`label` and the maps `(images, height, width)` as pictures."""
    return [{"label": label, "maps": [heat_uri(each.numpy()) for each in grids]} for label, grids in rows]
