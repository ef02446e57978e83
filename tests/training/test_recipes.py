"""Recipes: mixed images, rates by layer, and what the original makes of images kept on disk."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from vitcompact.errors import Interrupted, UsageError
from vitcompact.training import FinetuneResult, TensorBatches, finetune
from vitcompact.training.distill import label_loss
from vitcompact.training.mixing import Mixing
from vitcompact.training.optimizer import parameter_groups, weight_scale
from vitcompact.training.teacher_cache import NAME, TeacherCache

from .helpers import SIZE, StopAfter, make_student, make_teacher, options, same_weights

CLASSES = 5


@pytest.mark.parametrize("asked", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}], ids=str)
@pytest.mark.parametrize("count", [1, 6, 7])
def test_images_and_labels_are_mixed_alike(asked: dict[str, float], count: int) -> None:
    images = torch.arange(1.0, count + 1)[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    before, labels, state = images.clone(), torch.arange(count) % CLASSES, str(np.random.get_state())
    mixing = Mixing(options(labels=True, **asked), CLASSES)
    changed = 0
    for step in range(4):
        mixed, shares = mixing(step, images, labels)
        again = mixing(step, images, labels)
        assert torch.equal(mixed, again[0])
        assert torch.equal(shares, again[1])
        one_hot = nn.functional.one_hot(labels, CLASSES).float()
        own = (mixed.mean((1, 2, 3)) - before.flip(0)[:, 0, 0, 0]) / (before - before.flip(0))[:, 0, 0, 0]
        for place in range(count):
            share = float(own[place]) if 2 * place + 1 != count else 1.0
            expected = share * one_hot[place] + (1 - share) * one_hot[count - 1 - place]
            assert torch.allclose(shares[place], expected, atol=1e-4)
        changed += not torch.equal(mixed, before)
    assert torch.equal(images, before)
    assert changed == (4 if count > 1 else 0)
    assert str(np.random.get_state()) == state


def test_an_image_mixed_with_an_unlabelled_one_has_no_label() -> None:
    _, shares = Mixing(options(labels=True, mixup=1.0), CLASSES)(
        0, torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, -1])
    )
    assert shares.sum(1).tolist() == pytest.approx([0, 1, 1, 0])
    logits = torch.randn(4, CLASSES)
    expected = -(shares * logits.log_softmax(1)).sum(1)[1:3].mean()
    assert float(label_loss(logits, shares, 0.0)) == pytest.approx(float(expected))
    assert float(label_loss(logits, torch.zeros(4, CLASSES), 0.0)) == 0


def test_without_labels_only_images_are_mixed() -> None:
    labels = torch.tensor([7, -1])
    assert Mixing(options(mixup=1.0), 0)(0, torch.randn(2, 3, 8, 8), labels)[1] is labels


def test_a_mixed_run_resumes_bit_for_bit(tmp_path: Path, images: Tensor) -> None:
    teacher = make_teacher()
    student = make_student(teacher, branches=0)
    chosen = options(steps=5, labels=True, mixup=0.8, cutmix=1.0, layer_decay=0.5, logit_weight=1.0, grad_accum=2)
    stream = TensorBatches(images, torch.arange(24) % CLASSES, batch_size=8)
    whole = finetune(student, teacher, stream, options=chosen)
    with pytest.raises(Interrupted):
        finetune(student, teacher, stream, options=chosen, state_dir=tmp_path, progress=StopAfter(2))
    resumed = finetune(student, teacher, stream, options=chosen, state_dir=tmp_path, resume="auto")
    assert same_weights(whole.model, resumed.model)
    plain = finetune(student, teacher, stream, options=options(steps=5, labels=True, logit_weight=1.0))
    assert not same_weights(whole.model, plain.model)


def test_rates_fall_from_layer_to_layer(teacher: VisionTransformer) -> None:
    student = make_student(teacher, branches=0)
    found: dict[int, float] = {}
    for group in parameter_groups(student, options(layer_decay=0.5), {}):
        found |= {id(weight): group["lr_scale"] for weight in group["params"]}
    rate = {
        name: found[id(weight)] / (weight_scale(weight) if weight.ndim > 1 else 1)
        for name, weight in student.named_parameters()
    }
    assert rate["head.bias"] == 1
    assert rate["blocks.1.attn.qkv.bias"] == rate["blocks.1.mlp.fc2.reduce.weight"] == 0.5
    assert rate["blocks.0.attn.qkv.weight"] == 0.25
    assert rate["patch_embed.proj.bias"] == 0.125
    with pytest.raises(UsageError, match="`layer_decay`: Sequential does not tell its layers"):
        parameter_groups(nn.Sequential(nn.Linear(2, 2)), options(layer_decay=0.5), {})


Go = Callable[..., FinetuneResult]


@pytest.fixture(scope="module")
def cached() -> Go:
    """Nine steps over three epochs; `calls` of the original while training are counted."""
    images = torch.randn(24, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))

    def run(folder: Path | None, classes: int = CLASSES, calls: list[int] | None = None, **more: Any) -> FinetuneResult:
        teacher = make_teacher(num_classes=classes)
        student = make_student(teacher, branches=0)
        given = {name: more.pop(name) for name in ("resume", "progress") if name in more}
        opt = {"opt": "adamw", **more}
        if calls is not None:
            teacher.blocks[0].register_forward_hook(
                lambda *_: calls.append(1) if torch.is_grad_enabled() is False else None
            )
        chosen = options(**{"steps": 9, "cache_teacher": True, **opt})
        return finetune(
            student, teacher, TensorBatches(images, batch_size=8), options=chosen, state_dir=folder, **given
        )

    return run


@pytest.mark.parametrize(
    ("classes", "more"),
    [(CLASSES, {}), (CLASSES, {"logit_weight": 1.0, "block_weight": 0.0}), (0, {}), (0, {"block_weight": 0.0})],
)
def test_the_original_is_asked_once_of_each_image(
    classes: int, more: dict[str, Any], cached: Go, tmp_path: Path
) -> None:
    calls: dict[bool, list[int]] = {True: [], False: []}
    runs = {
        kept: cached(tmp_path / str(kept), classes, calls[kept], cache_teacher=kept, **more).model.state_dict()
        for kept in (True, False)
    }
    assert len(calls[False]) - len(calls[True]) == 6  # of nine steps
    for name, tensor in runs[True].items():
        assert torch.allclose(tensor, runs[False][name], atol=1e-5), name
    assert not (tmp_path / "True" / NAME).exists()


def test_a_run_that_goes_on_finds_what_was_kept(cached: Go, tmp_path: Path) -> None:
    whole = cached(tmp_path / "whole")
    with pytest.raises(Interrupted):
        cached(tmp_path / "here", progress=StopAfter(4))
    assert [path.name for path in (tmp_path / "here" / NAME).iterdir()] == ["0.sqlite"]
    resumed = cached(tmp_path / "here", resume="auto")
    assert same_weights(whole.model, resumed.model)


def _piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _spoil(path: Path, words: str) -> None:
    with sqlite3.connect(path) as file:
        file.execute(words)
    file.close()


def _laid_out(path: Path, layout: str) -> None:
    _spoil(path, f"UPDATE about SET value = '{layout}' WHERE name = 'layout'")


FILES: dict[str, Callable[[Path], object]] = {
    "no database": lambda path: path.write_bytes(b"mine" * 1000),
    "of another run": lambda path: TeacherCache(path, "another", 1e9).close(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "other values": lambda path: _spoil(path, "UPDATE outputs SET content = x'00'"),
    **{
        f"the layout {layout[:30]}": partial(_laid_out, layout=layout)
        for layout in ("[1]", '[["load", [3]]]', '[["float32", [-1]]]', '[["float32", ["a"]]]', "[" * 10_000, "{")
    },
    "a pipe": lambda path: _piped(path),
}


@pytest.mark.parametrize("damage", FILES)
def test_a_file_that_is_of_no_use_is_made_anew(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = torch.randn(4, 3, 2, 2)
    path = tmp_path / NAME / "0.sqlite"

    def twice() -> TeacherCache:
        cache = TeacherCache(path, "this", 1e9)
        for _ in range(2):
            first, second = cache.outputs(images, lambda some: [some.sum((2, 3)), some[:, 0].to(torch.bfloat16)])
            assert torch.equal(first, images.sum((2, 3)))
            assert torch.equal(second, images[:, 0].to(torch.bfloat16))
        cache.close()
        return cache

    assert (twice().hits, twice().hits) == (4, 8)
    FILES[damage](path)
    assert twice().misses == 4
    assert not caplog.text
    small = TeacherCache(tmp_path / "small" / "0.sqlite", "this", 100)
    for _ in range(2):
        small.outputs(images, lambda some: [some])
    assert small.misses == 8  # 192 bytes do not fit


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"mixup": 0.5}, "`mixup` mixes them"),
        ({"cutmix": 0.5}, "`cutmix` mixes them"),
        ({"folder": None}, "`state_dir`"),
    ],
)
def test_images_that_vary_are_not_kept(more: dict[str, Any], message: str, cached: Go, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        cached(**{"folder": tmp_path, **more})
