"""What a student shares with its teacher up to the first changed block is left as it is."""

from __future__ import annotations

import copy

import torch
from timm.models import VisionTransformer
from torch import Tensor

import vitcompact
from vitcompact.operators.merge import install_merging
from vitcompact.training.distill import first_changed_block, stop_gradients_before

from .helpers import make_student, make_teacher, options

BLOCKS = ("blocks.0", "blocks.1")


def second_block_changed(teacher: VisionTransformer) -> VisionTransformer:
    student = make_student(teacher)
    student.blocks[0] = copy.deepcopy(teacher.blocks[0])
    return student


@torch.no_grad()
def test_the_first_changed_block_is_found(teacher: VisionTransformer) -> None:
    assert first_changed_block(make_student(teacher), teacher, BLOCKS) == "blocks.0"
    student = second_block_changed(teacher)
    assert first_changed_block(student, teacher, BLOCKS) == "blocks.1"
    assert first_changed_block(copy.deepcopy(teacher), teacher, BLOCKS) is None
    student.patch_embed.proj.weight.copy_(student.patch_embed.proj.weight.half())  # saved in half precision
    assert first_changed_block(student, teacher, BLOCKS) == "blocks.1"
    student.patch_embed.proj.weight.mul_(1.1)
    assert first_changed_block(student, teacher, BLOCKS) is None
    shorter = copy.deepcopy(teacher)
    shorter.blocks = shorter.blocks[:1]
    assert first_changed_block(shorter, teacher, BLOCKS) is None


def test_only_what_comes_after_the_first_change_is_trained(teacher: VisionTransformer, images: Tensor) -> None:
    student = second_block_changed(teacher)
    result = vitcompact.finetune(student, teacher, images, options=options())
    before, after = student.state_dict(), result.model.state_dict()
    moved = {name.split(".mlp")[0] for name, x in after.items() if not torch.equal(x, before[name])}
    assert not any(name.startswith(("patch_embed", "pos_embed", "cls_token", "blocks.0")) for name in moved)
    assert {"blocks.1", "blocks.1.attn.qkv.weight"} <= moved
    result.model(images).sum().backward()
    assert result.model.get_parameter("patch_embed.proj.weight").grad is not None  # nothing stays behind in the result
    student.requires_grad_(True)(images).sum().backward()
    assert student.patch_embed.proj.weight.grad is not None


@torch.no_grad()
def test_merged_tokens_pass_the_cut(images: Tensor) -> None:
    model = make_teacher()
    install_merging(model, (2, 2))
    wanted = model(images)
    handle = stop_gradients_before(model, "blocks.1")
    torch.testing.assert_close(model(images), wanted, rtol=1e-5, atol=1e-5)
    handle.remove()
