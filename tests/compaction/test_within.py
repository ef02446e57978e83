"""The smallest model within a limit: found by bisection, from one measurement, and said where there is none."""

from __future__ import annotations

import json
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import vitcompact
from vitcompact.analysis import count
from vitcompact.compaction import within as module
from vitcompact.errors import UsageError
from vitcompact.folding.verify import perturbed
from vitcompact.planning import curves as curves_module
from vitcompact.planning.candidates import measure_losses
from vitcompact.surgery import convert

SIZE = (3, 32, 32)


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("test_vit2", img_size=32, num_classes=5, num_heads=2, embed_dim=32, depth=2).eval()
    return perturbed(model, seed=1).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(64, *SIZE, generator=torch.Generator().manual_seed(0))


def judged_by_share(monkeypatch: pytest.MonkeyPatch, limit: float) -> list[float]:
    """Conversions hold from a share of the MACs on; which were asked for is written down."""
    asked: list[float] = []

    def counted(model: nn.Module, **kwargs: Any) -> nn.Module:
        asked.append(kwargs["target_macs"])
        return convert(model, **kwargs)

    monkeypatch.setattr(module, "convert", counted)
    monkeypatch.setattr(module, "_score", lambda *_: (1.0 if asked[-1] >= limit else 0.0, None, 8))
    return asked


@pytest.mark.parametrize("limit", [0.87, 0.66, 0.97])
def test_the_smallest_that_holds_is_found(
    limit: float, vit: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = judged_by_share(monkeypatch, limit)
    walks: list[int] = []

    def walked(*args: Any, **kwargs: Any) -> Any:
        walks.append(1)
        return measure_losses(*args, **kwargs)

    monkeypatch.setattr(curves_module, "measure_losses", walked)
    found = vitcompact.convert_within(vit, images, min_agreement=0.5)
    assert found.held
    assert limit <= found.share < limit + 2 * module.CLOSE
    assert len([each for each in found.tried if each.score is not None]) <= module.TRIES
    assert len(set(asked)) == len(asked)
    assert sum(walks) == 1
    left = count(found.model, SIZE).macs / count(vit, SIZE).macs
    assert found.share - 0.05 < left <= found.share
    assert [each.share for each in found.tried] == asked
    assert found.num_samples == 8


def test_none_holds(vit: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = judged_by_share(monkeypatch, 2.0)
    found = vitcompact.convert_within(vit, images, min_cosine=0.5)
    assert not found.held
    assert found.share == max(asked)
    assert "missed" in repr(found)
    assert json.loads(json.dumps(found.to_json()))["held"] is False


def test_scores_are_those_of_other_verbs(vit: nn.Module, images: Tensor) -> None:
    labels = torch.arange(64) % 5
    pairs = [(images[:40], labels[:40]), (images[40:], labels[40:])]
    found = vitcompact.convert_within(vit, images, max_drop=99.0, evaluation=pairs, tries=1)
    seen = vitcompact.evaluate(found.model, pairs, reference=vit)
    assert found.tried[-1].score == -(seen.top1_change or 0.0)
    assert found.num_samples == 64
    fidelity = vitcompact.results(found.model).fidelity
    assert fidelity is not None
    by_cosine = vitcompact.convert_within(vit, images, min_cosine=0.001, tries=1)
    by_class = vitcompact.convert_within(vit, images, min_agreement=0.001, tries=1)
    assert by_cosine.tried[-1].score == fidelity.cosine
    assert (by_class.tried[-1].score, by_class.tried[-1].interval) == (fidelity.agreement, fidelity.agreement_interval)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({}, "say what may be lost"),
        ({"max_drop": 1.0, "min_cosine": 0.9}, "give one of `max_drop` and `min_cosine`"),
        ({"max_drop": 1.0}, "give `evaluation`"),
        ({"min_agreement": 1.5}, "`min_agreement` must be above 0 and at most 1"),
        ({"max_drop": -1.0}, "`max_drop` must be"),
        ({"min_cosine": 0.9, "ops": ("nothing",)}, "`ops` takes"),
    ],
)
def test_refused(given: dict[str, Any], part: str, vit: nn.Module, images: Tensor) -> None:
    with pytest.raises(UsageError, match=part):
        vitcompact.convert_within(vit, images, **given)


def test_a_model_without_a_head_is_judged_by_its_cosine(images: Tensor) -> None:
    features = timm.create_model("test_vit2", img_size=32, num_classes=0, num_heads=2, embed_dim=32, depth=2).eval()
    with pytest.raises(UsageError, match="has no head: use `min_cosine`"):
        vitcompact.convert_within(features, images, min_agreement=0.9)
