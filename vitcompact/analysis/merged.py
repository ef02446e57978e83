"""Merged tokens drawn over pictures: which patches became one, halfway and at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitcompact.layers.merge import Groups
from vitcompact.layers.merging_blocks import MergingBlock, MergingBlocks
from vitcompact.models.cores import grid_size_of
from vitcompact.reporting import picture_uri
from vitcompact.reporting.images import LARGEST
from vitcompact.utils.hooks import hooked

_LINE = np.array([255, 255, 255], dtype=np.uint8)


@torch.no_grad()
def merged_pictures(model: nn.Module, images: Tensor, pixels: np.ndarray) -> list[dict[str, Any]]:
    """Views of every picture: as it is, in the middle of the trunk and after it; none where no token merges.

    Args:
        model: a compacted model in evaluation mode.
        images: `(n, channels, height, width)`, normalised.
        pixels: the same as uint8 `(n, height, width, channels)`.
    """
    blocks = getattr(model, "blocks", None)
    grid = grid_size_of(model)
    if not isinstance(blocks, MergingBlocks) or grid is None or not any(_merges(block) for block in blocks):
        return []
    found: dict[str, Groups | None] = {}

    def keep(name: str) -> Any:
        return lambda _, __, output: found.update({name: getattr(output, "vitcompact_groups", None)})

    names = [name for name, _ in blocks.named_children()]
    with hooked(blocks, {name: keep(name) for name in names}):
        model(images)
    shown = [name for name in dict.fromkeys((names[(len(names) - 1) // 2], names[-1])) if found.get(name)]
    first = int(getattr(model, "num_prefix_tokens", 0))
    whole = grid[0] * grid[1]
    pictures = []
    for index, each in enumerate(pixels):
        views = [(picture_uri(each), f"{whole} patches")]
        for name in shown:
            groups = found[name]
            assert groups is not None
            places = groups.source[index, first:].reshape(grid).cpu().numpy()
            views.append((picture_uri(drawn(each, places)), f"{len(np.unique(places))} after block {int(name) + 1}"))
        pictures.append({"views": views})
    return pictures


def drawn(picture: np.ndarray, places: np.ndarray) -> np.ndarray:
    """A picture whose patches of one token share their mean colour, with lines between tokens.

    Args:
        picture: uint8 `(height, width, channels)`.
        places: the token of every patch, `(rows, columns)`.
    """
    times = max(1, LARGEST // max(picture.shape[:2]))
    large = picture.repeat(times, axis=0).repeat(times, axis=1)
    rows = np.arange(large.shape[0]) * places.shape[0] // large.shape[0]
    columns = np.arange(large.shape[1]) * places.shape[1] // large.shape[1]
    token = places[rows][:, columns]
    out = large.copy()
    for one, size in zip(*np.unique(places, return_counts=True), strict=True):
        if size > 1:
            inside = token == one
            out[inside] = large[inside].mean(axis=0)
    edge = np.zeros(token.shape, dtype=bool)
    edge[1:] |= token[1:] != token[:-1]
    edge[:, 1:] |= token[:, 1:] != token[:, :-1]
    out[edge] = (0.45 * out[edge] + 0.55 * _LINE[: out.shape[-1]]).astype(np.uint8)
    return out


def _merges(block: nn.Module) -> bool:
    return isinstance(block, MergingBlock) and block.r > 0
