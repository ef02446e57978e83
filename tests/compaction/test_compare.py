"""Models beside each other."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

import vitcompact
from vitcompact import UsageError
from vitcompact.benchmarking import beside_first
from vitcompact.folding.verify import perturbed


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=32, num_classes=5, depth=2).eval()


def test_the_first_is_what_the_others_are_compared_with(model: nn.Module) -> None:
    images = torch.randn(24, 3, 32, 32)
    with torch.no_grad():
        labelled: list[tuple[Tensor, Tensor]] = [(images, model(images).argmax(1))]
    other = perturbed(copy.deepcopy(model), seed=1).eval()
    first, second = vitcompact.compare({"a": model, "b": other}, labelled, batch_size=1, num_pairs=2)
    assert (first.name, first.top1, first.change, first.agreement) == ("a", 100.0, 0.0, 1.0)
    assert second.change == pytest.approx((second.top1 or 0.0) - 100.0)
    assert second.agreement == pytest.approx((second.top1 or 0.0) / 100)
    assert second.change_interval is not None
    assert second.change_interval[0] <= (second.change or 0.0) <= second.change_interval[1]
    assert (first.macs, first.params) == (second.macs, second.params)
    assert (first.speedup, first.speedup_interval) == (1.0, (1.0, 1.0))
    alone = vitcompact.compare({"a": model, "b": other}, batch_size=1, num_pairs=1)
    assert [each.top1 for each in alone] == [None, None]
    with pytest.raises(UsageError, match="two or more"):
        vitcompact.compare({"a": model})


def test_all_are_timed_in_the_same_rounds(model: nn.Module) -> None:
    order: list[str] = []
    models = {name: copy.deepcopy(model) for name in "abc"}
    for name, each in models.items():
        each.get_submodule("patch_embed").register_forward_pre_hook(lambda *_, name=name: order.append(name))
    found = beside_first(list(models.values()), batch_size=1, num_rounds=3, warmup=1)
    assert "".join(order) == "abc" + "abc" + "cba" + "abc"
    assert [len(times.model) for times in found] == [3, 3, 3]
    assert all(times.baseline == found[0].model for times in found)


def test_images_that_one_refuses_are_refused(model: nn.Module) -> None:
    larger = timm.create_model("test_vit", img_size=64, num_classes=5, depth=2, dynamic_img_size=False).eval()
    with pytest.raises(UsageError, match="cannot run on images of 1 x 3 x 32 x 32"):
        vitcompact.compare({"a": model, "b": larger}, batch_size=1, num_pairs=1)
