"""Options are checked at the boundary; parameter groups and losses do what their names say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import Tensor, nn

from vitcompact.errors import UsageError
from vitcompact.layers.branches import TokenBatchNorm
from vitcompact.training import TensorBatches, TrainOptions
from vitcompact.training.distill import block_loss, feature_loss, label_loss, logit_loss, relative_error
from vitcompact.training.optimizer import output_scales, parameter_groups, weight_scale
from vitcompact.training.options import DEFAULT_MINUTES, ResolvedOptions
from vitcompact.training.stream import as_stream

from .helpers import options


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"steps": 0}, "`steps` must be at least 1"),
        ({"epochs": -1.0}, "`epochs` must be above 0"),
        ({"max_minutes": float("nan")}, "`max_minutes` must be above 0"),
        ({"lr": 0.0}, "`lr` must be above 0"),
        ({"smoothing": 1.0}, r"`smoothing` must be in \[0, 1\)"),
        ({"model_ema_decay": 1.5}, "`model_ema_decay` must be"),
        ({"sched": "plateau"}, "accepted are cosine"),
        ({"opt": "adamww"}, "did you mean adamw"),
        ({"opt": "adahessian"}, "second derivatives"),
        ({"amp_dtype": "float16"}, "must be bfloat16"),
        ({"logit_weight": 0.0, "block_weight": 0.0}, "nothing to learn from"),
    ],
)
def test_bad_options_name_the_option(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainOptions(**kwargs)


def test_without_a_limit_there_is_a_default_one() -> None:
    assert TrainOptions().max_minutes == DEFAULT_MINUTES
    assert TrainOptions(steps=3).max_minutes is None


def test_optimizer_and_rate_follow_the_kind_of_model_unless_given() -> None:
    def chosen(has_head: bool, **kwargs: Any) -> tuple[str, float]:
        resolved = ResolvedOptions.of(TrainOptions(seed=7, **kwargs), has_head)
        assert resolved.seed == 7
        return resolved.opt, resolved.lr

    assert chosen(True) == ("adamw", 1e-4)
    assert chosen(False) == ("muon", 3e-5)
    assert chosen(False, opt="adamw") == ("adamw", 3e-5)
    assert chosen(True, lr=2e-4) == ("adamw", 2e-4)


def test_silent_parts_have_a_group_of_their_own(student: VisionTransformer, images: Tensor) -> None:
    scales = output_scales(student, images)
    groups = parameter_groups(student, options(lr=1e-3, branch_lr=1e-2, weight_decay=0.05), scales)
    count = len(scales)
    others, branches = groups[:-count], groups[-count:]
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    silent = {id(p) for m in student.modules() if isinstance(m, TokenBatchNorm) for p in m.parameters()}
    assert {id(p) for branch in branches for p in branch["params"]} == silent
    for branch, scale in zip(branches, scales.values(), strict=True):
        assert branch["lr_scale"] == pytest.approx(10 * scale)
        assert branch["weight_decay"] == 0
    decayed = [names[id(p)] for group in others if group["weight_decay"] for p in group["params"]]
    assert decayed
    assert not any(name.endswith("bias") or "norm" in name or name == "cls_token" for name in decayed)
    assert len(names) == sum(len(group["params"]) for group in groups)


def test_losses_are_zero_for_equal_outputs_only() -> None:
    first, second = torch.randn(4, 7, 5), torch.randn(4, 7, 5)
    assert logit_loss(first[0], first[0], 2.0) == pytest.approx(0, abs=1e-6)
    assert logit_loss(first[0], second[0], 2.0) > 0
    assert block_loss([first], [first]) == 0
    assert feature_loss((first[0], first), (first[0], first)) == pytest.approx(0, abs=1e-6)
    assert feature_loss((first[0], None), (second[0], None)) > 0


def test_relative_error_counts_every_token_alike() -> None:
    teacher = torch.randn(2, 3, 8)
    student = teacher * 1.1
    teacher[0, 0] *= 1000
    student[0, 0] *= 1000
    assert relative_error(student, teacher) == pytest.approx(0.01, rel=1e-3)
    assert relative_error(teacher * 0, teacher) == pytest.approx(1)
    maps = torch.randn(2, 8, 3, 3)
    assert relative_error(maps * 1.1, maps, channel_dim=1) == pytest.approx(0.01, rel=1e-3)


def test_temperature_keeps_the_size_of_the_gradient() -> None:
    teacher = torch.randn(64, 10)
    sizes = []
    for temperature in (1.0, 4.0):
        student = (teacher + 0.01 * torch.randn(64, 10)).requires_grad_()
        logit_loss(student, teacher, temperature).backward()
        assert student.grad is not None
        sizes.append(float(student.grad.norm()))
    assert 0.2 < sizes[1] / sizes[0] < 5


def test_label_loss_ignores_images_without_label() -> None:
    logits, labels = torch.randn(4, 5), torch.tensor([1, -1, 3, -1])
    expected = F.cross_entropy(logits[[0, 2]], labels[[0, 2]], label_smoothing=0.1)
    assert torch.equal(label_loss(logits, labels, 0.1), expected)
    assert label_loss(logits, torch.full((4,), -1), 0.1) == 0


def test_batches_in_memory_are_resumable_and_cover_an_epoch() -> None:
    images = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 3, 2, 2)
    stream = TensorBatches(images, batch_size=3, seed=4)
    assert (stream.steps_per_epoch, stream.num_samples) == (3, 10)
    source = stream.batches()
    first = [next(source)[0][:, 0, 0, 0] for _ in range(7)]
    assert len(set(torch.cat(first[:3]).tolist())) == 9
    assert not torch.equal(first[0], first[3])
    later = stream.batches(4)
    assert all(torch.equal(next(later)[0][:, 0, 0, 0], batch) for batch in first[4:])
    with pytest.raises(UsageError, match="labels must have the shape"):
        TensorBatches(images, torch.zeros(3))


def test_iterables_of_batches_are_kept_in_memory() -> None:
    given = ((torch.randn(4, 3, 2, 2), torch.zeros(4)) for _ in range(3))
    stream = as_stream(given, nn.Identity(), seed=0)
    assert (stream.num_samples, stream.batch_size) == (12, 4)
    with pytest.raises(UsageError, match="shape"):
        as_stream(torch.randn(4, 2), nn.Identity(), seed=0)


def test_steps_are_relative_to_the_size_of_the_weights(student: VisionTransformer) -> None:
    """LayerScale absorbed into a matrix changes its size: the learning rate follows."""
    assert weight_scale(0.02 * torch.ones(3, 3)) == 1
    assert weight_scale(0.16 * torch.ones(3, 3)) == 8
    assert weight_scale(0.0025 * torch.ones(3, 3)) == 0.125
    assert weight_scale(torch.zeros(3, 3)) == 1
    matrix = student.blocks[0].attn.proj.weight
    with torch.no_grad():
        matrix.mul_(64 / matrix.square().mean().sqrt() * 0.02)
    groups = parameter_groups(student, options(weight_decay=0.0), {})
    assert [group["lr_scale"] for group in groups if any(p is matrix for p in group["params"])] == [64]


def test_output_scales_are_those_of_the_solved_part(student: VisionTransformer, images: Tensor) -> None:
    scales = output_scales(student, images)
    assert len(scales) == 4
    assert all(scale > 0 for scale in scales.values())
    with torch.no_grad():
        student.blocks[0].mlp.fc2.reduce.main.weight.mul_(8)
    name = "blocks.0.mlp.fc2.reduce"
    assert output_scales(student, images)[name] == pytest.approx(8 * scales[name], rel=1e-4)
    assert not any(module._forward_hooks for module in student.modules())
