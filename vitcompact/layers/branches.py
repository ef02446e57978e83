"""A linear map with parallel re-parameterised branches that start silent and fold away."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitcompact.layers.pointwise import linear_class


class TokenBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of the last axis over every token, `(..., channels)`; or of axis 1 of a feature map.

    Its scale starts at zero, so a branch that ends in it adds nothing at first. The recomputation of a forward
    pass under activation checkpointing runs inside backward and does not update the running statistics again.
    """

    channel_dim = -1
    over_all: Callable[[Tensor], Tensor] | None = None
    """Sums a tensor over processes that share a batch, with gradients: statistics are then those of the whole batch."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        momentum = 0.0 if self.training and _is_recomputing() else self.momentum
        mean, variance = self.running_mean, self.running_var
        flat = x if self.channel_dim == 1 else x.reshape(-1, x.shape[-1])
        if self.training and self.over_all is not None:
            return self._of_whole_batch(flat, self.over_all, momentum or 0.0).reshape(x.shape)
        out = nn.functional.batch_norm(
            flat, mean, variance, self.weight, self.bias, self.training, momentum or 0.0, self.eps
        )
        return out.reshape(x.shape)

    def _of_whole_batch(self, x: Tensor, over_all: Callable[[Tensor], Tensor], momentum: float) -> Tensor:
        """The same for a part `(rows, channels)` or `(images, channels, ...)` of a batch."""
        rows = x.movedim(1, -1).reshape(-1, x.shape[1]).float()
        sums = over_all(torch.cat((rows.sum(0), rows.new_tensor([len(rows)]))))
        count, mean = float(sums[-1].detach()), sums[:-1] / sums[-1].detach()
        variance = over_all((rows - mean).square().sum(0)) / count
        if self.running_mean is not None and self.running_var is not None:
            unbiased = variance.detach() * (count / max(count - 1, 1))
            self.running_mean.lerp_(mean.detach().to(self.running_mean), momentum)
            self.running_var.lerp_(unbiased.to(self.running_var), momentum)
        along = (1, -1, *[1] * (x.ndim - 2))
        scale = self.weight * (variance + self.eps).rsqrt()
        out: Tensor = (x.float() - mean.view(along)) * scale.view(along) + self.bias.view(along)
        return out.to(x.dtype)


def _is_recomputing() -> bool:
    """Whether this forward runs inside a backward pass, as activation checkpointing does."""
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._current_graph_task_id() != -1)


class LinearBranch(nn.Module):
    """`BN(B x)`: one silent branch from `(..., in_features)` to `(..., out_features)`, or over axis 1."""

    def __init__(self, in_features: int, out_features: int, channel_dim: int = -1) -> None:
        super().__init__()
        self.linear = linear_class(channel_dim)(in_features, out_features, bias=False)
        self.norm = TokenBatchNorm(out_features)
        self.norm.channel_dim = channel_dim

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.linear(x))
        return out

    def merged(self) -> tuple[Tensor, Tensor]:
        """Weight `(out, in)` and bias `(out,)` of the equal linear map in eval mode, in float64."""
        norm = self.norm
        assert norm.running_mean is not None  # always tracked
        assert norm.running_var is not None
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        return scale[:, None] * self.linear.weight.double(), norm.bias.double() - scale * norm.running_mean.double()


class BranchedLinear(nn.Module):
    """`y = W x + b + sum_i BN_i(B_i x)`, the training form of one FFN factor (arXiv 2306.10875, section 3.3)."""

    def __init__(self, in_features: int, out_features: int, branches: int, bias: bool, channel_dim: int = -1) -> None:
        super().__init__()
        self.in_features, self.out_features, self.channel_dim = in_features, out_features, channel_dim
        self.main = linear_class(channel_dim)(in_features, out_features, bias=bias)
        self.branches = nn.ModuleList(LinearBranch(in_features, out_features, channel_dim) for _ in range(branches))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.main(x)
        for branch in self.branches:
            out = out + branch(x)
        return out

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The equal plain linear layer in eval mode: branches added in float64, then cast back once."""
        weight = self.main.weight.double()
        bias = torch.zeros(self.out_features, dtype=torch.float64, device=weight.device)
        if self.main.bias is not None:
            bias = bias + self.main.bias.double()
        for branch in self.branches:
            branch_weight, branch_bias = branch.merged()  # type: ignore[operator]
            weight, bias = weight + branch_weight, bias + branch_bias
        layer = linear_class(self.channel_dim)
        linear = layer(self.in_features, self.out_features, device=weight.device, dtype=self.main.weight.dtype)
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
        return linear

    @torch.no_grad()
    def branch_ratio(self) -> float:
        """Frobenius norm of the folded branches over that of the solved matrix; 0 while they are silent."""
        total = torch.zeros((), dtype=torch.float64)
        merged = [branch.merged()[0] for branch in self.branches]  # type: ignore[operator]
        if merged:
            total = torch.stack(merged).sum(0).norm().cpu()
        return float(total / self.main.weight.double().norm().cpu().clamp_min(1e-30))


def fuse_layers(model: nn.Module) -> None:
    """Fold every layer of ours that can, in place; timm's own fusions are left to timm's `reparameterize_model`."""
    for module in list(model.modules()):
        if getattr(module, "folds_in_place", False):
            module.fuse()  # type: ignore[operator]


def branched(model: nn.Module) -> dict[str, BranchedLinear]:
    """The layers of a model that have branches, by module path."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, BranchedLinear)}
    return {name: module for name, module in found.items() if len(module.branches)}
