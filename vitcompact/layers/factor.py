"""A linear layer as a product of two thin ones: the compacted FFN output matrix (cFFN)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitcompact.layers.branches import BranchedLinear
from vitcompact.layers.pointwise import linear_class


class FactorizedLinear(nn.Module):
    """`y = U (V x) + b` with `V (rank, in)` and `U (out, rank)`; stands where an FFN had its `fc2`.

    Channels are the last axis, or with `channel_dim` 1 that of a feature map `(batch, channels, height, width)`, where
    both factors are 1x1 convolutions.

    In the training form each factor carries `branches` silent branches; in the folded form (`branches` 0) both
    factors are plain linear layers. Only `U` has a bias once folded: `V`'s goes through `U` into it.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        branches: int = 0,
        *,
        channel_dim: int = -1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.num_branches, self.channel_dim = branches, channel_dim
        if branches:
            self.reduce: nn.Module = BranchedLinear(in_features, rank, branches, False, channel_dim)
            self.expand: nn.Module = BranchedLinear(rank, out_features, branches, True, channel_dim)
        else:
            layer = linear_class(channel_dim)
            self.reduce = layer(in_features, rank, bias=False)
            self.expand = layer(rank, out_features)
        self.to(device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.expand(self.reduce(x))
        return out

    @property
    def solved(self) -> tuple[nn.Linear, nn.Linear]:
        """The two solved matrices `(V, U)` without their branches."""
        pair = [part.main if isinstance(part, BranchedLinear) else part for part in (self.reduce, self.expand)]
        assert isinstance(pair[0], nn.Linear)
        assert isinstance(pair[1], nn.Linear)
        return pair[0], pair[1]

    @property
    def weight(self) -> Tensor:
        """The product `U V` in eval mode, `(out, in)`: for code that looks at `fc2.weight`."""
        reduce, expand = self.merged()
        return expand.weight @ reduce.weight

    @torch.no_grad()
    def merged(self) -> tuple[nn.Linear, nn.Linear]:
        """The two plain factors `(V, U)` in eval mode, with `V`'s branch bias moved into `U`'s."""
        if not (isinstance(self.reduce, BranchedLinear) and isinstance(self.expand, BranchedLinear)):
            return self.solved
        reduce, expand = self.reduce.merged(), self.expand.merged()
        expand.bias.add_((expand.weight.double() @ reduce.bias.double()).to(expand.bias.dtype))
        plain = linear_class(self.channel_dim)(
            self.in_features, self.rank, bias=False, device=expand.weight.device, dtype=expand.weight.dtype
        )
        plain.weight.copy_(reduce.weight)
        return plain, expand

    def grow(self, branches: int) -> None:
        """Turn the folded form into the training form in place: the same map, with silent branches beside it."""
        reduce, expand = self.solved
        if branches and reduce is self.reduce:
            layout = self.channel_dim
            self.reduce = BranchedLinear(self.in_features, self.rank, branches, False, layout).to(reduce.weight)
            self.expand = BranchedLinear(self.rank, self.out_features, branches, True, layout).to(expand.weight)
            self.reduce.main, self.expand.main = reduce, expand
            self.reduce.train(self.training)
            self.expand.train(self.training)
            self.num_branches = branches

    folds_in_place = True

    def fuse(self) -> FactorizedLinear:
        """Fold the branches away in place; a second call does nothing. Returns itself: timm's `reparameterize_model`
        puts what `fuse` returns in the module's place."""
        self.reduce, self.expand = self.merged()
        self.num_branches = 0
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"
