"""The learning rate that a run without `lr` takes: the nearer the model is to its original, the smaller."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import pytest
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from vitcompact.training import TrainOptions, finetune
from vitcompact.training.distill import block_names
from vitcompact.training.optimizer import FACTORS, USUAL_ERROR, block_error, rate_factor
from vitcompact.training.options import ResolvedOptions

from .helpers import make_teacher

finetune_module = import_module("vitcompact.training.finetune")  # the package has a function of that name


def nearby(teacher: VisionTransformer, share: float) -> VisionTransformer:
    """The teacher with noise of a share of the weights' size on the FFN outputs of all blocks."""
    torch.manual_seed(0)
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for block in student.blocks:
            weight = block.mlp.fc2.weight
            weight.add_(share * weight.std() * torch.randn_like(weight))
    return student


def chosen(student: nn.Module, teacher: nn.Module, images: Tensor, **kwargs: Any) -> float:
    options = TrainOptions(**{"steps": 1, "amp": False, **kwargs})
    lr = finetune(student, teacher, images, options=options).lr
    assert lr is not None
    return lr


def test_the_factor_is_the_root_of_the_error_within_limits() -> None:
    assert rate_factor(USUAL_ERROR) == 1
    assert rate_factor(USUAL_ERROR / 4) == pytest.approx(0.5)
    assert rate_factor(0.0) == FACTORS[0]
    assert rate_factor(100.0) == FACTORS[1]
    assert rate_factor(math.nan) == 1


def test_weights_that_are_off_by_half_as_much_get_half_the_rate(images: Tensor) -> None:
    teacher = make_teacher()
    far, near = (chosen(nearby(teacher, share), teacher, images) for share in (0.2, 0.1))
    assert near == pytest.approx(far / 2, rel=0.1)
    assert 0.1 * 1e-4 < near < far < 1.5e-4
    error = block_error(nearby(teacher, 0.2), teacher, block_names(teacher), [(images, torch.empty(0))])
    assert far == pytest.approx(1e-4 * rate_factor(error), rel=0.05)


def test_a_rate_that_is_given_is_taken_and_outputs_alone_change_none(images: Tensor) -> None:
    teacher = make_teacher()
    student = nearby(teacher, 0.1)
    assert chosen(student, teacher, images, lr=7e-4) == 7e-4
    assert chosen(student, teacher, images, block_weight=0.0) == 1e-4


def test_branches_follow_the_rate_unless_they_have_one_of_their_own(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[ResolvedOptions] = []
    make = finetune_module.make_optimizer

    def recorded(model: nn.Module, options: ResolvedOptions, scales: Mapping[str, float]) -> torch.optim.Optimizer:
        used.append(options)
        return make(model, options, scales)

    monkeypatch.setattr(finetune_module, "make_optimizer", recorded)
    teacher = make_teacher()
    student = nearby(teacher, 0.1)
    for rates in ({}, {"branch_lr": 3e-3}, {"lr": 7e-4}, {"lr": 7e-4, "branch_lr": 3e-3}):
        chosen(student, teacher, images, **rates)
    factor = used[0].lr / 1e-4
    assert factor < 1
    assert [options.branch_lr for options in used] == pytest.approx([factor * 1e-3, 3e-3, 1e-3, 3e-3])
    assert [options.lr for options in used] == pytest.approx([factor * 1e-4, factor * 1e-4, 7e-4, 7e-4])


def test_a_model_without_a_head_has_a_rate_of_its_own(images: Tensor) -> None:
    with_head, without = make_teacher(), make_teacher(num_classes=0)
    rates = [chosen(nearby(teacher, 0.1), teacher, images) for teacher in (with_head, without)]
    assert rates[1] == pytest.approx(0.3 * rates[0], rel=0.1)
