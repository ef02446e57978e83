"""GRAIL (arXiv 2602.23795), implemented from its abstract: narrower FFNs, made up for by a ridge regression.

A selector ranks the hidden units of each FFN; the same share stays in every layer. The Gram matrix of the hidden
activations gives the linear map from those that stay to all, which is multiplied into the output layer. Blocks follow
each other: each one's activations are those behind the blocks narrowed before it. Nothing is centred.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from .common import Calibration, macs_of, nearest, replace_linear

MULTIPLE = 8
RIDGE = 1e-3
"""Of the mean of the diagonal; the abstract does not state the paper's own, nor which layers it narrows."""

Selector = Callable[[Mlp, Tensor], Tensor]
"""Scores `(hidden,)` of an FFN's hidden units, given the Gram matrix of their activations."""


def by_magnitude(mlp: Mlp, gram: Tensor) -> Tensor:
    """Norm of what makes a unit."""
    return mlp.fc1.weight.norm(dim=1)


def by_wanda(mlp: Mlp, gram: Tensor) -> Tensor:
    """Norm of a unit's activations times the sum of the sizes of its output weights (arXiv 2306.11695)."""
    return mlp.fc2.weight.abs().sum(dim=0) * gram.diagonal().sqrt()


def by_gram(mlp: Mlp, gram: Tensor) -> Tensor:
    """Energy of a unit's activations."""
    return gram.diagonal()


def prune(model: nn.Module, calibration: Calibration, target: float, selector: Selector) -> nn.Module:
    """The model with the same share of hidden units in every FFN."""
    hidden = max(mlp.fc2.in_features for mlp in _ffns(model))
    steps = range(0, hidden, MULTIPLE)
    removed = nearest(lambda gone: macs_of(_narrowed(model, gone / hidden)), steps, macs_of(model), target)
    return _compensated(model, calibration, removed / hidden, selector)


magnitude, wanda, energy = (partial(prune, selector=selector) for selector in (by_magnitude, by_wanda, by_gram))


def _kept(mlp: Mlp, share: float) -> int:
    return max(MULTIPLE, mlp.fc2.in_features - round(share * mlp.fc2.in_features / MULTIPLE) * MULTIPLE)


def _narrowed(model: nn.Module, share: float) -> nn.Module:
    """The shapes alone."""
    narrow = copy.deepcopy(model)
    for mlp in _ffns(narrow):
        some = torch.arange(_kept(mlp, share))
        mlp.fc1, mlp.fc2 = replace_linear(mlp.fc1, some, None), replace_linear(mlp.fc2, None, some)
    return narrow


@torch.no_grad()
def _compensated(model: nn.Module, calibration: Calibration, share: float, selector: Selector) -> nn.Module:
    narrow = copy.deepcopy(model).eval()
    for mlp in _ffns(narrow):
        gram = _gram(narrow, mlp, calibration)
        order = selector(mlp, gram.to(mlp.fc1.weight)).argsort(descending=True, stable=True)
        some = order[: _kept(mlp, share)].sort().values
        inner = gram[some][:, some]
        inner = inner + RIDGE * inner.diagonal().mean() * torch.eye(len(some), dtype=gram.dtype)
        back = torch.linalg.solve(inner, gram[some])  # kept units to all units
        weight = mlp.fc2.weight.double() @ back.T
        mlp.fc1, mlp.fc2 = replace_linear(mlp.fc1, some, None), replace_linear(mlp.fc2, None, some)
        mlp.fc2.weight.copy_(weight)
    return narrow


def _gram(model: nn.Module, mlp: Mlp, calibration: Calibration) -> Tensor:
    """Sum of products of hidden activations over all tokens, float64 `(hidden, hidden)`."""
    hidden = mlp.fc2.in_features
    found = torch.zeros(hidden, hidden, dtype=torch.float64)

    def add(module: nn.Module, args: tuple[Tensor]) -> None:
        rows = args[0].flatten(0, -2)
        found.add_((rows.T @ rows).double())

    handle = mlp.fc2.register_forward_pre_hook(add)
    for images, _ in calibration.batches():
        model(images)
    handle.remove()
    return found


def _ffns(model: nn.Module) -> list[Mlp]:
    return [module for name, module in model.named_modules() if isinstance(module, Mlp) and "blocks" in name]
