"""A tiny teacher, and a student whose FFN outputs were factorised with one silent branch each."""

from __future__ import annotations

import copy
import os
import signal
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from torch import nn

from vitcompact.layers.factor import FactorizedLinear
from vitcompact.training import TrainOptions
from vitcompact.training.options import ResolvedOptions

RANK = 16
SIZE = 32


def make_teacher(num_classes: int = 5, **kwargs: Any) -> VisionTransformer:
    """`test_vit2` with perturbed weights and blocks that matter (its LayerScale starts at 1e-5), in evaluation mode."""
    torch.manual_seed(1)
    model = timm.create_model("test_vit2", depth=2, num_classes=num_classes, img_size=SIZE, **kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for block in model.blocks:
            block.ls1.gamma.fill_(0.5)
            block.ls2.gamma.fill_(0.5)
    return model


def make_student(teacher: VisionTransformer, branches: int = 1) -> VisionTransformer:
    """The teacher with every `mlp.fc2` truncated to `RANK`."""
    student = copy.deepcopy(teacher)
    for block in student.blocks:
        dense = block.mlp.fc2
        factor = FactorizedLinear(dense.in_features, dense.out_features, RANK, branches)
        reduce, expand = factor.solved
        u, s, v = torch.linalg.svd(dense.weight.detach(), full_matrices=False)
        with torch.no_grad():
            reduce.weight.copy_(v[:RANK])
            expand.weight.copy_(u[:, :RANK] * s[:RANK])
            expand.bias.copy_(dense.bias)
        block.mlp.fc2 = factor
    return student.eval()


def options(**kwargs: Any) -> ResolvedOptions:
    """Six short steps in float32, for a model with a head."""
    return ResolvedOptions.of(TrainOptions(**{"steps": 6, "amp": False, "warmup_steps": 1, **kwargs}), has_head=True)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Whether two models are bit-identical."""
    mine, other = first.state_dict(), second.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


class StopAfter:
    """A progress receiver that sends this process a signal after `steps` steps."""

    def __init__(self, steps: int, number: int = signal.SIGINT) -> None:
        self.left, self.number = steps, number

    def start(self, task: str, total: float | None) -> None:
        pass

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)

    def finish(self) -> None:
        pass
