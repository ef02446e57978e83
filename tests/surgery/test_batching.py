"""Nothing hangs on how many images go through the model at once."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import timm
import torch
from torch import Tensor, nn

import vitcompact
from vitcompact.calibration.held_out import GROUP, Parts, is_held_out
from vitcompact.calibration.ties import leading_digits, least, lower
from vitcompact.data import TensorImages, first_images, from_tensor, num_distinct, rebatched
from vitcompact.surgery.reconstruct import ReconstructOptions

WEIGHTS, OUTPUTS = 1e-3, 1e-4
"""What docs/determinism.md allows, relative to the largest number of a tensor."""
CASES: dict[str, dict[str, Any]] = {
    "pair": {"ratio": 0.5, "rank_ratio": 0.5},
    "paths": {"ratio": 0.5, "rank_ratio": 0.5, "terms": ("identity", "mean", "conv")},
    "budget": {"target_macs": 0.75, "merge_tokens": "auto"},
}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return two_blocks(num_heads=4)


def two_blocks(num_heads: int) -> nn.Module:
    """A ViT in which no weight is trivial."""
    torch.manual_seed(0)
    made: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=num_heads, num_classes=5
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Two groups, the second not full."""
    return torch.randn(GROUP + 20, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def converted(model: nn.Module, images: Tensor | list[Tensor], batch_size: int, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return vitcompact.convert(model, images=images, batch_size=batch_size, **options).eval()


def furthest(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return max(float((w - other[n]).abs().max() / w.abs().max().clamp_min(1e-30)) for n, w in one.items())


@pytest.mark.parametrize("case", CASES)
def test_plan_and_weights_do_not_hang_on_the_batch_size(model: nn.Module, images: Tensor, case: str) -> None:
    wanted = converted(model, images, 64, **CASES[case])
    found = converted(model, list(images.split([3, 66, 1, 14])), 200, **CASES[case])
    plan, other = vitcompact.results(wanted).plan, vitcompact.results(found).plan
    assert (plan.layers, plan.merge_tokens) == (other.layers, other.merge_tokens)
    assert furthest(wanted.state_dict(), found.state_dict()) < WEIGHTS
    with torch.no_grad():
        assert furthest({"answer": wanted(images)}, {"answer": found(images)}) < OUTPUTS
    likeness, same = vitcompact.results(wanted).fidelity, vitcompact.results(found).fidelity
    assert likeness is not None
    assert same is not None
    assert same.num_samples == likeness.num_samples == 10  # 8 of 64, 2 of 20
    assert same.cosine == pytest.approx(likeness.cosine, abs=1e-5)


def test_blocks_that_are_reconstructed_in_float32_do_not_hang_on_the_batch_size(model: nn.Module) -> None:
    """All of one image but for some noise, so that steps are worth keeping."""
    base = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    images = base + 0.3 * torch.randn(GROUP + 20, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    how = {**CASES["pair"], "reconstruct": ReconstructOptions(20, lr=1e-3, bf16=False)}
    wanted, closed = converted(model, images, 64, **how), converted(model, images, 64, **CASES["pair"])
    found = converted(model, list(images.split([3, 66, 1, 14])), 200, **how)
    with torch.no_grad():
        assert furthest({"answer": wanted(images)}, {"answer": closed(images)}) > 10 * OUTPUTS
        assert furthest({"answer": wanted(images)}, {"answer": found(images)}) < OUTPUTS
    assert furthest(wanted.state_dict(), found.state_dict()) < WEIGHTS


def test_plan_and_weights_do_not_hang_on_the_number_of_threads(model: nn.Module, images: Tensor) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = converted(model, images, 64, **CASES["pair"])
        torch.set_num_threads(2)
        found = converted(model, images, 64, **CASES["pair"])
    finally:
        torch.set_num_threads(before)
    assert vitcompact.results(found).plan.layers == vitcompact.results(wanted).plan.layers
    assert furthest(wanted.state_dict(), found.state_dict()) < WEIGHTS


class Eigen(NamedTuple):
    """What `torch.linalg.eigh` returns."""

    eigenvalues: Tensor
    eigenvectors: Tensor


def other_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eigenvectors and singular vectors, as good as they were: every second one comes negated."""
    exact_svd, exact_eigh, exact_qr = torch.linalg.svd, torch.linalg.eigh, torch.linalg.qr

    def by_turns(count: int) -> Tensor:
        return (1 - 2 * (torch.arange(count) % 2)).double()

    def svd(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        u, s, vh = exact_svd(*args, **kwargs)
        return u * by_turns(u.shape[-1]), s, vh * by_turns(vh.shape[-2])[:, None]

    def eigh(*args: Any, **kwargs: Any) -> Eigen:
        values, vectors = exact_eigh(*args, **kwargs)
        return Eigen(values, vectors * by_turns(vectors.shape[-1]))

    def qr(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        q, r = exact_qr(*args, **kwargs)
        return q * by_turns(q.shape[-1]), r * by_turns(r.shape[-2])[:, None]

    for name, other in {"svd": svd, "eigh": eigh, "qr": qr}.items():
        monkeypatch.setattr(torch.linalg, name, other)


@pytest.mark.parametrize(
    ("options", "with_images"),
    [
        ({"rank_ratio": 0.5, "only": "ffn"}, True),
        ({"rank_ratio": 0.5, "only": "ffn"}, False),
        ({"rank_ratio": 0.5, "only": "ffn", "init": "svd"}, True),
        ({"target_macs": 0.95, "ops": ["thin-qk"]}, True),
        ({"target_macs": 0.95, "ops": ["thin-vo"]}, True),
        pytest.param({"target_macs": 0.75}, True, marks=pytest.mark.broad),
    ],
    ids=str,
)
def test_weights_do_not_hang_on_the_signs_of_eigenvectors(
    images: Tensor, options: dict[str, Any], with_images: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = two_blocks(num_heads=2), images if with_images else None
    wanted = vitcompact.convert(model, images=seen, **options)
    other_signs(monkeypatch)
    found = vitcompact.convert(model, images=seen, **options)
    assert vitcompact.results(found).plan == vitcompact.results(wanted).plan
    assert furthest(wanted.state_dict(), found.state_dict()) < 1e-5


@pytest.mark.broad
def test_nothing_hangs_on_luck(model: nn.Module, images: Tensor) -> None:
    wanted, found = (converted(model, images, 64, **CASES["budget"]) for _ in range(2))
    assert vitcompact.results(found).plan == vitcompact.results(wanted).plan
    assert furthest(wanted.state_dict(), found.state_dict()) == 0


def test_an_eighth_of_every_64_images_is_held_out() -> None:
    assert [i for i in range(64 + 9) if is_held_out(i, 64 + 9)] == [*range(56, 64), 72]
    assert [sum(is_held_out(i, n) for i in range(n)) for n in (1, 2, 3, 8, 16, 512)] == [0, 1, 1, 1, 2, 64]


@pytest.mark.parametrize("size", [1, 5, 64, 100, 200])
def test_the_parts_of_batches_hold_the_same_images_out(size: int) -> None:
    found: list[int] = []
    for start in range(0, 150, size):
        stop = min(start + size, 150)
        windows = torch.arange(start, stop).repeat_interleave(4)
        for held, rows in Parts.of(start, stop, 150).slices(len(windows)):
            found += windows[rows].tolist() if held else []
    assert found == [i for i in range(150) if is_held_out(i, 150) for _ in range(4)]


def test_images_are_rebatched_and_cut_exactly() -> None:
    batches = TensorImages(list(torch.arange(23.0).view(23, 1, 1, 1).split([4, 9, 10])))
    assert [batch.flatten().tolist() for batch in rebatched(batches, 10)] == [
        [*range(10)],
        [*range(10, 20)],
        [20, 21, 22],
    ]
    assert torch.cat(list(first_images(batches, 6))).flatten().tolist() == [*range(6)]
    assert first_images(from_tensor(torch.zeros(3, 3, 2, 2)), 9).num_samples == 3


def test_what_is_equal_but_for_rounding_is_a_tie_and_order_decides() -> None:
    errors = {"first": 0.1234567, "second": 0.12345669, "worse": 0.2}
    assert least(errors, errors.__getitem__) == "first"
    assert least(reversed(errors), errors.__getitem__) == "second"
    assert not lower(0.12345669, than=0.1234567)
    assert lower(0.12345, than=0.12346)
    table = torch.tensor([[1e9, 0.3000001], [0.3, 0.0]], dtype=torch.float64)
    found = leading_digits(table)
    assert found[0, 1] == found[1, 0] == pytest.approx(0.3)
    assert [float(found[0, 0]), float(found[1, 1])] == [1e9, 0.0]
    assert leading_digits(table[0] * 1.001)[1] > found[0, 1]  # beside a dear one too


@pytest.mark.parametrize(
    ("images", "distinct"),
    [
        (torch.randn(1, 3, 32, 32).repeat(6, 1, 1, 1), 1),
        (torch.zeros(6, 3, 32, 32), 1),
        (torch.randn(1, 3, 32, 32).repeat(6, 1, 1, 1) + 0.01 * torch.randn(6, 3, 32, 32), 1),
        (torch.randn(3, 3, 32, 32).repeat(2, 1, 1, 1), 3),
        (torch.randn(6, 3, 32, 32), 6),
    ],
    ids=["copies", "black", "nearly copies", "half", "all"],
)
def test_copies_are_counted_once_and_warned_of(
    images: Tensor, distinct: int, model: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    assert num_distinct(from_tensor(images, 4)) == (distinct, 6)
    vitcompact.plan(model, images=images, ratio=0.5, rank_ratio=0.0001)
    assert (f"only {distinct} of 6 calibration images differ" in caplog.text) == (distinct < 6)


def test_a_head_that_answers_nothing_is_refused_by_name(model: nn.Module, images: Tensor) -> None:
    dead = copy.deepcopy(model)
    for name in ("weight", "bias"):
        torch.nn.init.zeros_(dead.get_parameter(f"head.{name}"))
    with pytest.raises(vitcompact.DataError, match="has its head been trained"):
        vitcompact.plan(dead, images=images, target_macs=0.8)
