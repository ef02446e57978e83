"""Classes read off features: by hand, whatever the features' basis, and with its own interval beside a reference."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from vitcompact.data import from_tensor
from vitcompact.errors import DataError, UsageError
from vitcompact.evaluation import evaluate
from vitcompact.evaluation.probe import Linear, fitted_probe
from vitcompact.options.evaluation import Probe
from vitcompact.utils.intervals import paired_difference, wilson

CLASSES = 4


class Prepared(nn.Module):
    """Gives the prepared features of each image, whose pixels are a hundredth of its number."""

    def __init__(self, rows: Tensor, num_classes: int = 0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.rows = nn.Parameter(rows)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.rows[(100 * images[:, 0, 0, 0]).round().long()][:, None]

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        assert pre_logits
        return tokens[:, 0]

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images), pre_logits=True)


def numbered(first: int, last: int) -> Tensor:
    return (torch.arange(first, last) / 100).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def clusters(noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """100 features near one of four directions each, and which."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(100) % CLASSES
    return torch.eye(CLASSES, 8)[labels] + noise * torch.randn(100, 8, generator=generator), labels


ROWS, LABELS = clusters()
FIT, JUDGE = (numbered(0, 60), LABELS[:60]), (numbered(60, 100), LABELS[60:])


def test_votes_of_neighbours_by_hand() -> None:
    fitted = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 2.0], [-1.0, 0.0]])
    probe = fitted_probe("knn", fitted, torch.tensor([7, 3, 3, -1]), k=2)
    assert probe.classes.tolist() == [3, 7]
    assert probe.num_fitted == 3
    seen = probe.scores(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    votes = [[math.exp(-0.4 / 0.07), 1.0], [1 + math.exp(-0.2 / 0.07), 0.0]]
    assert torch.allclose(seen, torch.tensor(votes, dtype=torch.float64))
    assert probe.places(torch.tensor([7, 3, -1])).tolist() == [1, 0, -1]


def test_linear_layer_is_the_minimum_of_a_convex_problem() -> None:
    probe = fitted_probe("linear", ROWS, LABELS, k=20)
    assert isinstance(probe, Linear)
    chance = probe.scores(ROWS).softmax(dim=1) - torch.eye(CLASSES, dtype=torch.float64)[LABELS]
    assert torch.allclose(chance.mean(dim=0), torch.zeros(CLASSES, dtype=torch.float64), atol=1e-5), "the bias"
    standard = (ROWS.double() - probe.mean) / probe.scale
    slope = standard.T @ chance / len(ROWS)
    penalty = -(slope * probe.weight).sum() / probe.weight.square().sum()
    assert torch.allclose(slope, -penalty * probe.weight, atol=1e-5), "one penalty for all weights"
    assert 1e-6 < float(penalty) < 0.2


@pytest.mark.parametrize("probe", ["knn", "linear"])
def test_only_what_is_lost_counts(probe: Probe) -> None:
    """Features in another basis are as good; features of ten images that say another class are wrong, and paired."""
    turned, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))
    rows = ROWS @ turned
    rows[60:70] = rows[61:71].clone()  # the class is the next one's
    given = {"probe": probe, "probe_images": FIT, "probe_k": 5}
    found = evaluate(Prepared(rows), JUDGE, reference=Prepared(ROWS), **given)  # type: ignore[arg-type]
    assert (found.reference_top1, found.top1, found.top1_change) == (100.0, 75.0, -25.0)
    assert found.top1_change_interval == tuple(100 * end for end in paired_difference(0, 10, 40))
    assert (found.agreement, found.agreement_interval) == (0.75, wilson(30, 40))
    assert found.cosine is not None
    assert found.cosine < 0.9
    assert (found.probe, found.probe_samples, found.num_samples) == (probe, 60, 40)
    document = found.to_json()
    assert document["probe"] == {"name": probe, "num_samples": 60}
    assert document["reference"]["top1"] == 100.0
    assert document["neighbour_agreement"] == found.neighbour_agreement
    alone = evaluate(Prepared(rows), JUDGE, **given)  # type: ignore[arg-type]
    assert (alone.top1, alone.top5, alone.cosine, alone.agreement) == (75.0, 100.0, None, None)


def test_a_head_does_not_matter() -> None:
    model = timm.create_model("test_vit", img_size=32, num_classes=7).eval()
    images, labels = torch.randn(24, 3, 32, 32), torch.arange(24) % 3
    fit = [(images[:12], labels[:12])]
    with_head = evaluate(model, images[12:], labels[12:], probe="linear", probe_images=fit)
    model.reset_classifier(0)
    without = evaluate(model, images[12:], labels[12:], probe="linear", probe_images=fit)
    assert without == with_head
    assert without.features


ERRORS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no images": (lambda: evaluate(Prepared(ROWS), JUDGE, probe="knn"), UsageError, "give `probe_images`"),
    "no probe": (lambda: evaluate(Prepared(ROWS), JUDGE, probe_images=FIT), UsageError, "say which by `probe`"),
    "another": (
        lambda: evaluate(Prepared(ROWS), JUDGE, probe="mlp", probe_images=FIT),  # type: ignore[arg-type]
        UsageError,
        "'knn' or 'linear', got 'mlp'",
    ),
    "unlabelled fit": (
        lambda: evaluate(Prepared(ROWS), JUDGE, probe="linear", probe_images=from_tensor(FIT[0])),
        DataError,
        "have no labels",
    ),
    "one class": (
        lambda: evaluate(Prepared(ROWS), JUDGE, probe="linear", probe_images=(FIT[0], FIT[1] * 0)),
        DataError,
        "all of one class",
    ),
    "too many neighbours": (
        lambda: evaluate(Prepared(ROWS), JUDGE, probe="knn", probe_images=FIT, probe_k=61),
        UsageError,
        "`probe_k=61`: there are only 60",
    ),
    "too many of a stream": (
        lambda: evaluate(Prepared(ROWS), JUDGE, probe="knn", probe_images=[FIT], probe_k=61),
        UsageError,
        "`probe_k=61`: there are only 60",
    ),
    "unlabelled judge": (
        lambda: evaluate(Prepared(ROWS), from_tensor(JUDGE[0]), probe="knn", probe_images=FIT),
        DataError,
        "to evaluate on have no labels",
    ),
    "unknown class": (
        lambda: evaluate(Prepared(ROWS), (JUDGE[0], JUDGE[1] + 3), probe="knn", probe_images=FIT),
        DataError,
        "fitted to 4 classes, and class 4 is none of them",
    ),
    "not finite": (
        lambda: evaluate(Prepared(ROWS * torch.inf), JUDGE, probe="linear", probe_images=FIT),
        DataError,
        "not finite",
    ),
    "no features": (
        lambda: evaluate(nn.Linear(3, 2), JUDGE, probe="linear", probe_images=FIT),
        UsageError,
        "needs features",
    ),
    "nothing to fit to": (
        lambda: evaluate(Prepared(ROWS), JUDGE, probe="linear", probe_images=[]),
        DataError,
        "no images to fit the probe to",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_refused(name: str) -> None:
    call, kind, part = ERRORS[name]
    with pytest.raises(kind) as caught:
        call()
    assert part in str(caught.value)
