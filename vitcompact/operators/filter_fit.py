"""Closed-form 3x3 filters of the heads' own values, for a given output projection.

A filter commutes with `proj`: tap `s` of head `h` adds `shift_s(V_h W_h)` to the layer's output. So the taps of all
heads have one small least-squares problem, whatever the width of the heads; `proj` is solved again afterwards.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vitcompact.calibration.finite import check_finite
from vitcompact.layers.attention import CompactAttention
from vitcompact.utils.processes import Processes

TAPS = 9
CHUNK = 2**24
"""Numbers held at once while products of taps are summed."""
FILTER_RIDGE = 1e-3


class FilterMoments:
    """Streams the normal equations of the filters' taps.

    Args:
        core: the layer; its `proj`, its other paths and its filter (where the taps start from) are read.
    """

    def __init__(self, core: CompactAttention, name: str = "") -> None:
        assert core.conv is not None
        self.core, self.conv, self.name = core, core.conv, name
        size = TAPS * core.num_heads
        self.gram = torch.zeros(size, size, dtype=torch.float64)
        self.cross = torch.zeros(size, dtype=torch.float64)

    def add(self, v: Tensor, phi: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            v: values, `(batch, tokens, heads * v_dim)`.
            phi: inputs of `proj` with all paths, `(batch, tokens, heads * v_dim)`.
            target: outputs of the layer, `(batch, tokens, outputs)`.

        Raises:
            DataError: values that are not finite; the message names the layer.
        """
        residual = self.conv.image(target - self.core.proj(phi))
        values = self.conv.image(v)
        height, width = values.shape[-2:]
        images = max(1, CHUNK // (len(self.cross) * residual[0].numel()))
        for some, left in zip(values.split(images), residual.split(images), strict=True):
            taps = self._taps(some, height, width).double()
            self.gram += (taps @ taps.T).to(self.gram)
            self.cross += (taps @ left.flatten().double()).to(self.cross)
        check_finite(self.name, self.gram.diagonal())

    def total_over(self, processes: Processes) -> None:
        """See `calibration.sums.Sums`."""
        processes.total(self.gram, self.cross)

    def _taps(self, values: Tensor, height: int, width: int) -> Tensor:
        """What every tap adds to the output, `(heads * 9, images * outputs * height * width)`."""
        heads = values.unflatten(1, (self.core.num_heads, -1))
        weight = self.core.proj.weight.unflatten(1, (self.core.num_heads, -1))
        made = torch.einsum("bhdyx,ohd->hboyx", heads, weight.to(values.dtype))
        padded = F.pad(made, (1, 1, 1, 1))
        taps = [padded[..., dy : dy + height, dx : dx + width].flatten(1) for dy in range(3) for dx in range(3)]
        return torch.stack(taps, dim=1).flatten(0, 1)

    @torch.no_grad()
    def solve(self) -> Tensor:
        """The filters `(heads, 3, 3)` of least squared error, drawn a little to zero."""
        start = self.conv.weight.detach().flatten().to(self.gram)
        penalty = FILTER_RIDGE * self.gram.diagonal().mean().clamp_min(1e-300)
        system = self.gram + penalty * torch.eye(len(start), dtype=torch.float64)
        solved: Tensor = start + torch.linalg.solve(system, self.cross - penalty * start)
        return solved.reshape(self.core.num_heads, 3, 3)
