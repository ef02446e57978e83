"""What losses mean to answers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import timm
import torch
from torch import Tensor, nn

from vitcompact.calibration.held_out import is_held_out
from vitcompact.calibration.sensitivity import answer, change
from vitcompact.data import from_tensor
from vitcompact.folding.verify import perturbed
from vitcompact.models import inspect
from vitcompact.planning.predicted import Predicted, predict
from vitcompact.utils.hooks import hooked


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    made = timm.create_model("test_vit", img_size=32, num_classes=5, depth=2).eval()
    return perturbed(made, seed=1).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(128, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("head", [True, False])
def test_a_disturbance_of_another_kind_is_foretold(head: bool, model: nn.Module, images: Tensor) -> None:
    """Every layer a little smaller: not noise, and yet the same loss means about the same."""
    if not head:
        model = timm.create_model("test_vit", img_size=32, num_classes=0, depth=2).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = predict(model, inspect(model).sites, from_tensor(images, 20))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert found.measure == ("agreement" if head else "cosine")
    assert found.num_samples == 16
    losses = [loss for loss, _ in found.points]
    assert losses[0] > 0
    assert all(2.5 < high / low < 6 for low, high in pairwise(losses))  # noise twice as strong costs four times as much
    with torch.no_grad():
        old = answer(model, images)
        with hooked(model, {site.tap: lambda _, __, output: 0.8 * output for site in inspect(model).sites}):
            new = answer(model, images)
    loss = float(change(old, new).mean())
    if head:
        assert isinstance(old, Tensor)
        assert isinstance(new, Tensor)
        measured = float((old.argmax(1) == new.argmax(1)).double().mean())
        assert found.at(loss) == pytest.approx(
            measured, abs=0.25
        )  # an untrained model: answers are close to each other
    else:
        assert old[0] is not None
        assert new[0] is not None
        measured = float(torch.cosine_similarity(old[0], new[0]).mean())
        assert found.at(loss) == pytest.approx(measured, abs=0.05)
        assert found.interval(loss) is None


def test_images_that_were_fitted_to_are_not_looked_at(model: nn.Module, images: Tensor) -> None:
    """Other images where fits look: the same prediction."""
    sites = inspect(model).sites
    other = images.clone()
    fitted = [place for place in range(len(images)) if not is_held_out(place, len(images))]
    other[fitted] = torch.randn(len(fitted), 3, 32, 32)
    assert predict(model, sites, from_tensor(other, 20)) == predict(model, sites, from_tensor(images, 64))


@pytest.mark.parametrize(
    ("loss", "likeness"), [(0.0, 1.0), (-1.0, 1.0), (0.01, 0.95), (0.04, 0.9), (0.25, 0.75), (1.0, 0.4), (9.0, 0.4)]
)
def test_losses_between_points_and_beyond(loss: float, likeness: float) -> None:
    found = Predicted("agreement", ((0.04, 0.9), (0.16, 0.8), (0.36, 0.7), (1.0, 0.4)), 100)
    assert found.at(loss) == pytest.approx(likeness)
    low, high = found.interval(loss) or (0.0, 0.0)
    assert low <= likeness <= high
