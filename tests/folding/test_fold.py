"""Folding: parity on weights that mean something, refusal, idempotence."""

from __future__ import annotations

import copy
import importlib

import pytest
import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

import vitcompact
from tests.attached import parity_of, plan_of
from vitcompact.errors import UsageError, VerificationError
from vitcompact.folding.verify import perturbed
from vitcompact.layers.factor import FactorizedLinear


@pytest.fixture(scope="module")
def compact() -> VisionTransformer:
    torch.manual_seed(0)
    model = perturbed(timm.create_model("test_vit3", img_size=64, num_classes=5).eval(), seed=1).eval()
    images = torch.randn(48, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return perturbed(vitcompact.convert(model, images=images, branches=1), seed=2).eval()


@torch.no_grad()
def test_live_equals_folded_and_differs_from_unmoved(compact: VisionTransformer) -> None:
    images = torch.randn(4, 3, 64, 64)
    folded = vitcompact.fold(compact, images=images)
    parity = parity_of(folded)
    assert 0 < parity.rel_diff <= 2e-4
    assert parity.agreement == 1
    assert parity.cast_max_abs_diff == 0
    torch.testing.assert_close(folded(images), compact(images), rtol=1e-3, atol=1e-4)
    assert plan_of(folded).form == "folded"
    assert plan_of(compact).form == "training"
    assert not any("branches" in name or "alpha" in name for name in folded.state_dict())


@torch.no_grad()
def test_storing_in_half_precision_is_reported(compact: VisionTransformer) -> None:
    """By how much the outputs of what is stored differ from those of what was proven."""
    images = torch.randn(4, 3, 64, 64)
    folded = vitcompact.fold(compact, images=images, dtype=torch.bfloat16)
    stored = copy.deepcopy(folded).bfloat16().float()
    parity = parity_of(folded)
    assert parity.cast_max_abs_diff == float((stored(images) - folded(images)).abs().max()) > 1e-5
    assert parity.rel_diff <= 2e-4


@pytest.mark.parametrize("which", ["its own", "perturbed"])
@pytest.mark.parametrize(("difference", "refused"), [(1.9e-4, False), (2.1e-4, True)])
def test_either_difference_is_refused_above_the_tolerance(
    which: str, difference: float, refused: bool, compact: VisionTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def compare(*_: object) -> tuple[float, float, float]:
        calls.append(len(calls))
        wrong = (len(calls) == 1) == (which == "its own")
        return 0.0, difference if wrong else 0.0, 1.0

    monkeypatch.setattr(importlib.import_module("vitcompact.folding.fold"), "compare", compare)
    if not refused:
        assert parity_of(vitcompact.fold(compact)).rel_diff == difference
        return
    with pytest.raises(VerificationError, match=f"on {which}.* weights"):
        vitcompact.fold(compact)


def test_a_difference_of_just_the_tolerance_is_no_matter_for_float64(
    compact: VisionTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([(0.0, 0.0, 1.0), (0.0, 0.25, 1.0)])  # on its own weights and on perturbed ones: no third
    monkeypatch.setattr(importlib.import_module("vitcompact.folding.fold"), "compare", lambda *_: next(answers))
    assert parity_of(vitcompact.fold(compact, tolerance=0.25)).rel_diff == 0.25


def test_timm_reparameterize_folds_too(compact: VisionTransformer) -> None:
    images = torch.randn(2, 3, 64, 64)
    fused = timm.utils.reparameterize_model(compact)
    torch.testing.assert_close(fused(images), vitcompact.fold(compact)(images))


def test_a_wrong_fold_is_caught(compact: VisionTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold that forgets the branches is right for silent branches and wrong for any others."""
    monkeypatch.setattr(FactorizedLinear, "merged", lambda self: copy.deepcopy(self.solved))
    with pytest.raises(VerificationError, match="differs") as caught:
        vitcompact.fold(compact)
    assert caught.value.exit_code == 5


def test_a_wrong_fold_of_silent_branches_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Freshly converted, every branch is silent: only the perturbed copy can tell."""
    model = perturbed(timm.create_model("test_vit", img_size=64, num_classes=5).eval(), seed=1).eval()
    fresh = vitcompact.convert(model, images=torch.randn(16, 3, 64, 64), branches=1)
    monkeypatch.setattr(FactorizedLinear, "merged", lambda self: copy.deepcopy(self.solved))
    with pytest.raises(VerificationError, match="perturbed"):
        vitcompact.fold(fresh)


def test_a_perturbed_copy_beyond_float32_is_judged_in_float64(
    compact: VisionTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Perturbed weights are nobody's model: that float32 loses their outputs says nothing about the fold."""

    def exploding(model: nn.Module, seed: int) -> nn.Module:
        moved = perturbed(model, seed)
        with torch.no_grad():
            moved.get_parameter("head.weight").mul_(1e38)
        return moved

    monkeypatch.setattr(importlib.import_module("vitcompact.folding.fold"), "perturbed", exploding)
    assert parity_of(vitcompact.fold(compact)).rel_diff <= 2e-4
    monkeypatch.setattr(FactorizedLinear, "merged", lambda self: copy.deepcopy(self.solved))
    with pytest.raises(VerificationError, match="differs"):
        vitcompact.fold(compact)


def test_outputs_that_are_not_finite(compact: VisionTransformer) -> None:
    broken = copy.deepcopy(compact)
    with torch.no_grad():
        broken.head.weight.fill_(3e38)  # finite, what comes of it is not
    with pytest.raises(VerificationError, match="not finite"):
        vitcompact.fold(broken)


def test_an_unconverted_model_is_refused() -> None:
    with pytest.raises(UsageError, match="run convert first"):
        vitcompact.fold(timm.create_model("test_vit"))


@torch.no_grad()
def test_a_perturbed_copy_has_every_number_moved_and_none_far() -> None:
    """By a tenth of a tensor's spread, small ones by 0.05; matrices of many inputs by less: their noise adds up."""
    model = nn.Sequential(nn.Linear(400, 300), nn.BatchNorm1d(300), nn.Linear(300, 400))
    nn.init.normal_(model.get_parameter("2.weight"), std=2.0)
    for name, value in (("weight", 0.0), ("running_mean", 3.0), ("running_var", 4.0)):
        getattr(model[1], name).fill_(value)
    before, after = model.state_dict(), perturbed(model, seed=0).state_dict()
    change = {name: after[name] - value for name, value in before.items() if value.is_floating_point()}
    assert all((moved != 0).float().mean() > 0.99 for moved in change.values())
    wanted = {"0.weight": 0.5 / 20, "0.bias": 0.05, "1.weight": 0.05, "1.running_mean": 2.0, "2.weight": 0.2}
    for name, size in wanted.items():
        assert float(change[name].std()) == pytest.approx(size, rel=0.15), name
    factors = after["1.running_var"] / 4
    assert 0.5 <= float(factors.min()) < float(factors.max()) < 5


def test_headless(compact: VisionTransformer) -> None:
    model = copy.deepcopy(compact)
    model.reset_classifier(0)
    images: Tensor = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(vitcompact.fold(model)(images), model(images), rtol=1e-3, atol=1e-4)
