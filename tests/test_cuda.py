"""The whole library on a CUDA device, against the CPU; skipped where there is none."""

from __future__ import annotations

import copy
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import vitcompact
from vitcompact.data.prefetch import sent_ahead
from vitcompact.errors import DataError
from vitcompact.options.surgery import TERMS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

PAIR: dict[str, Any] = {"ratio": 0.5, "rank_ratio": 0.5}
CASES: dict[str, dict[str, Any]] = {
    "pair": PAIR,
    "paths": {**PAIR, "terms": TERMS, "filter_rank": 2, "branches": 2},
    "naive": {**PAIR, "init": "svd", "hallucinate": "copy"},
    "budget": {"target_macs": 0.7},
    "parameters": {"target_params": 0.7},
    "merging": {"target_macs": 0.7, "merge_tokens": "auto"},
    "reconstruct": {**PAIR, "reconstruct": 10},
    "weights": {**PAIR, "images": None},
}
SMALL = {"img_size": 64, "num_classes": 7}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {**SMALL, "depth": 2, "embed_dim": 64, "num_heads": 4}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {**SMALL, "window_size": 4, "embed_dim": 32, "depths": (1, 1), "num_heads": (2, 4)},
    ),
    "pvt": (
        "pvt_v2_b0",
        {"num_classes": 7, "depths": (1, 1, 1, 1), "embed_dims": (16, 32, 48, 64), "num_heads": (1, 2, 3, 4)},
    ),
    "eva": ("eva02_tiny_patch14_224", {**SMALL, "img_size": 56, "depth": 2, "embed_dim": 64, "num_heads": 4}),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A model in which no weight is trivial, and its images, on the CPU."""
    torch.manual_seed(0)
    arch, sizes = MODELS[name]
    side = sizes.get("img_size", 64)
    model = timm.create_model(arch, pretrained_cfg_overlay={"input_size": (3, side, side)}, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval(), torch.randn(80, 3, side, side)


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.cpu() - other.cpu()).norm() / one.cpu().norm())


@pytest.fixture(autouse=True)
def _exact() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MODELS)
def test_conversion_is_that_of_the_cpu(name: str, case: str) -> None:
    model, images = build(name)
    options = {"images": images, **CASES[case]}
    if name != "vit" and case in ("merging", "paths"):
        pytest.skip("plain ViTs only")
    wanted = vitcompact.convert(model, **options).eval()
    found = vitcompact.convert(model, device="cuda", **options).eval()
    assert not next(found.parameters()).is_cuda  # it comes back where `model` is
    plans = [vitcompact.results(m).plan for m in (wanted, found)]
    assert [layer.name for layer in plans[0].layers] == [layer.name for layer in plans[1].layers]
    with torch.no_grad():
        original, cpu, gpu = model(images), wanted(images), found.cuda()(images.cuda())
    assert distance(original, gpu) < 1.05 * distance(original, cpu) + 1e-3
    folded = vitcompact.fold(found)
    with torch.no_grad():
        assert distance(gpu, folded.cuda()(images.cuda())) < 2e-4


def test_analysis_training_evaluation_and_speed() -> None:
    model, images = build("vit")
    small = vitcompact.convert(model, images=images, **PAIR, device="cuda")
    report = vitcompact.analyze(model, images=images, target_macs=0.7, device="cuda")
    assert report.layers
    options = vitcompact.TrainOptions(steps=3)
    trained = vitcompact.finetune(small, copy.deepcopy(model), images.split(16), options=options, device="cuda").model
    folded = vitcompact.fold(trained)
    scores = vitcompact.evaluate(folded, images, reference=model, device="cuda")
    assert scores.num_samples == len(images)
    found = vitcompact.bench(folded, model, batch_sizes=(4,), num_pairs=3, device="cuda", dtype=torch.bfloat16)
    assert found.headline.model.peak_memory_bytes
    assert "cuda" in found.backend


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_batches_are_sent_ahead_whole_and_in_order(where: str) -> None:
    whole = [torch.full((64, 3, 112, 112), float(number), device=where) for number in range(8)]
    read: list[int] = []

    def reading() -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(whole):
            read.append(number)
            yield batch.clone(), torch.tensor([number])

    weight = torch.randn(2048, 2048, device="cuda")
    for number, (images, label) in enumerate(sent_ahead(reading(), torch.device("cuda"))):
        for _ in range(20):  # the device is still busy when the next batch comes
            weight = (weight @ weight).clamp(-1, 1)
        assert [each.device.type for each in (images, label)] == ["cuda", "cuda"]
        assert bool((images == number).all())
        assert int(label) == number
    assert read == list(range(8))


def test_what_reading_raises_comes_through_and_stopping_early_leaves_nothing_running() -> None:
    def reading() -> Generator[tuple[Tensor, ...]]:
        yield (torch.zeros(1),)
        yield (torch.ones(1),)
        raise DataError("no image is left")

    with pytest.raises(DataError, match="no image is left"):
        list(sent_ahead(reading(), torch.device("cuda")))
    batches = reading()
    with closing(batches), closing(sent_ahead(batches, torch.device("cuda"))) as sent:
        next(sent)
    assert not [each for each in threading.enumerate() if each.name.startswith("vitcompact-send")]
