from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from vitcompact.data import DataOptions, evaluation_batches, from_tensor
from vitcompact.errors import DataError, UsageError
from vitcompact.evaluation import EvalResult, eval_mode, evaluate
from vitcompact.models.forward import features
from vitcompact.utils.intervals import paired_difference, wilson


class Table(nn.Module):
    """Gives the prepared logits of each image, whose first pixel is its number."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.num_classes = rows.shape[1]
        self.rows = nn.Parameter(rows)

    def forward(self, images: Tensor) -> Tensor:
        return self.rows[images[:, 0, 0, 0].long()]


def numbered(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.float32).view(n, 1, 1, 1).expand(n, 3, 2, 2)


def batches(labels: list[int], size: int = 3) -> list[tuple[Tensor, Tensor]]:
    return list(zip(numbered(len(labels)).split(size), torch.tensor(labels).split(size), strict=True))


@pytest.fixture(scope="module")
def features_model() -> nn.Module:
    return timm.create_model("test_vit", img_size=32, num_classes=0).eval()


def perturbed(name: str, scale: float = 0.1, **kwargs: Any) -> nn.Module:
    torch.manual_seed(1)
    model = timm.create_model(name, **kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model


ROWS = torch.tensor([[9.0, 1, 2, 3, 4, 5], [1, 9, 2, 3, 4, 5], [5, 4, 9, 3, 2, 1], [1, 2, 3, 9, 4, 5]])


def test_accuracy_by_hand() -> None:
    result = evaluate(Table(ROWS), batches([0, 0, 0, 3]))
    assert (result.top1, result.top5, result.num_samples) == (50.0, 75.0, 4)
    assert (result.agreement, result.cosine, result.patch_cosine) == (None, None, None)


def test_top5_of_fewer_classes_is_all_of_them() -> None:
    assert evaluate(Table(ROWS[:, :3]), batches([0, 1, 2, 0])).top5 == 100.0


def test_fidelity_by_hand() -> None:
    reference = ROWS.clone()
    reference[0] = -reference[0]
    result = evaluate(Table(ROWS), batches([0, 0, 0, 3]), reference=Table(reference))
    assert [result.agreement, result.cosine] == [0.75, pytest.approx(0.5)]
    assert result.top1 == 50.0


def test_before_and_after_by_hand() -> None:
    """Images on which both are right or both wrong do not widen the interval."""
    reference = Table(torch.eye(6).repeat(2, 1))
    rows = reference.rows.detach().clone()
    rows[:3] = rows[:3].roll(1, dims=1)  # three of twelve go wrong
    labels = (torch.arange(12) % 6).tolist()
    result = evaluate(Table(rows), batches(labels, 5), reference=reference)
    assert (result.reference_top1, result.reference_top5, result.top1) == (100.0, 100.0, 75.0)
    assert result.top1_change == -25.0
    assert result.top1_change_interval == tuple(100 * end for end in paired_difference(0, 3, 12))
    assert result.agreement_interval == wilson(9, 12)
    document = result.to_json()
    assert document["reference"] == {"top1": 100.0, "top5": 100.0}
    assert document["change"] == {"top1": -25.0, "top1_interval": list(result.top1_change_interval or ())}
    unlabelled = evaluate(Table(rows), batches([-1] * 12), reference=reference).to_json()
    assert "reference" not in unlabelled
    assert unlabelled["agreement_interval"]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_batch_size_changes_nothing(size: int) -> None:
    reference = Table(ROWS + torch.rand(ROWS.shape))
    whole = evaluate(Table(ROWS), batches([0, 1, 3, 2]), reference=reference)
    parts = evaluate(Table(ROWS), batches([0, 1, 3, 2], size), reference=reference)
    assert replace(parts, cosine=None) == replace(whole, cosine=None)
    assert parts.cosine == pytest.approx(whole.cosine, rel=1e-12)


def test_unlabelled_images_count_for_fidelity_only() -> None:
    result = evaluate(Table(ROWS), batches([0, -1, -1, 1]), reference=Table(ROWS))
    assert (result.top1, result.num_samples, result.agreement) == (50.0, 4, 1.0)
    result = evaluate(Table(ROWS), batches([-1] * 4))
    assert (result.top1, result.top5) == (None, None)


def test_images_without_labels_may_come_alone() -> None:
    result = evaluate(Table(ROWS), from_tensor(numbered(4)), reference=Table(ROWS))
    assert [result.top1, result.agreement, result.cosine] == [None, 1.0, pytest.approx(1.0)]


def test_broken_outputs_are_wrong_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    rows = ROWS.clone()
    rows[0, 0] = float("nan")
    with caplog.at_level(logging.WARNING, "vitcompact"):
        result = evaluate(Table(rows), batches([0, 1, 2, 3]), reference=Table(rows))
    assert [result.top1, result.agreement, result.cosine] == [75.0, 0.75, pytest.approx(0.75)]
    assert "1 of 4 images are not finite" in caplog.text


def test_modes_are_given_back() -> None:
    model = timm.create_model("test_vit", img_size=32, num_classes=3)
    model.train()
    model.blocks[0].eval()
    before = [m.training for m in model.modules()]
    seen = []
    model.register_forward_pre_hook(lambda m, _: seen.append(any(s.training for s in m.modules())))
    evaluate(model, [torch.randn(2, 3, 32, 32)], reference=model)
    assert seen == [False, False]
    assert [m.training for m in model.modules()] == before
    with pytest.raises(RuntimeError, match="stop"), eval_mode(model):
        raise RuntimeError("stop")
    assert [m.training for m in model.modules()] == before


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3", "test_vit4"])
def test_features_of_a_model_without_a_head(name: str) -> None:
    model, other = perturbed(name, img_size=32, num_classes=0), perturbed(name, 0.3, img_size=32, num_classes=0)
    images = torch.randn(6, 3, 32, 32)
    same = evaluate(model, [images], reference=model)
    assert [same.cosine, same.patch_cosine, same.neighbour_agreement] == [pytest.approx(1), pytest.approx(1), 1.0]
    different = evaluate(model, list(images.split(2)), reference=other)
    assert different.features
    assert different.cosine is not None
    assert -1 < different.cosine < 0.999
    assert different.patch_cosine is not None
    assert -1 < different.patch_cosine < 0.999
    assert different.neighbour_agreement in {k / 6 for k in range(7)}


def test_patch_tokens_leave_class_and_register_tokens_out(features_model: nn.Module) -> None:
    pooled, patches = features(features_model, torch.randn(2, 3, 32, 32))
    assert patches is not None
    assert tuple(patches.shape) == (2, 4, pooled.shape[1])


@pytest.mark.parametrize(("name", "cells"), [("pvt_v2_b0", 4), ("swin_tiny_patch4_window7_224", 4)])
def test_cells_of_a_feature_map_are_patches(name: str, cells: int) -> None:
    kwargs = {"img_size": 64} if name.startswith("swin") else {}
    model = timm.create_model(name, num_classes=0, **kwargs).eval()
    with torch.inference_mode():
        pooled, patches = features(model, torch.randn(1, 3, 64, 64))
    assert patches is not None
    assert tuple(patches.shape) == (1, cells, pooled.shape[1])


def test_a_plain_module_without_a_head_has_pooled_features_only() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.num_classes = 0  # type: ignore[assignment]  # modules are typed to hold tensors and modules
    result = evaluate(model, [torch.randn(4, 3, 8, 8)], reference=model)
    assert [result.cosine, result.patch_cosine, result.neighbour_agreement] == [pytest.approx(1), None, 1.0]


def test_what_cannot_be_compared_is_refused(features_model: nn.Module) -> None:
    with pytest.raises(UsageError, match="pass a `reference`"):
        evaluate(features_model, [torch.randn(1, 3, 32, 32)])
    with pytest.raises(UsageError, match="6 classes and the reference 5"):
        evaluate(Table(ROWS), batches([0]), reference=Table(ROWS[:, :5]))
    with pytest.raises(DataError, match="no images"):
        evaluate(Table(ROWS), [])


def test_mixed_precision_runs_in_the_precision_asked_for() -> None:
    model = timm.create_model("test_vit", img_size=32, num_classes=3)
    seen = []
    model.head.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    result = evaluate(model, [torch.randn(2, 3, 32, 32)], reference=model, amp_dtype=torch.bfloat16)
    assert seen == [torch.bfloat16] * 2
    assert result.cosine == pytest.approx(1)


def test_json_has_the_keys_of_the_contract() -> None:
    scores = EvalResult(4, 50.0, 75.0, 0.5, 0.9)
    assert scores.to_json() == {"top1": 50.0, "top5": 75.0, "num_samples": 4, "agreement": 0.5, "cosine": 0.9}
    found = EvalResult(4, cosine=0.9, patch_cosine=0.8, neighbour_agreement=0.5, features=True).to_json()
    assert found == {"cosine": 0.9, "patch_cosine": 0.8, "neighbour_agreement": 0.5, "num_samples": 4}
    assert json.loads(json.dumps(found)) == found


@pytest.mark.slow
def test_the_real_checkpoint_scores_its_known_top1(shared_dir: Path) -> None:
    model = timm.create_model(f"local-dir:{shared_dir / 'models' / 'vit_small_cifar10'}", pretrained=True)
    options = DataOptions(data_dir=shared_dir / "data" / "cifar10" / "val.tar")
    result = evaluate(model, evaluation_batches(model, options))
    assert [result.num_samples, result.top1] == [5000, pytest.approx(93.38, abs=0.02)]
