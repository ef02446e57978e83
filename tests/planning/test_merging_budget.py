"""Merging tokens as part of a budget: what it saves, what it costs, and when it is chosen."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

import vitcompact
from tests.attached import plan_of
from vitcompact.analysis import count
from vitcompact.calibration.output_sensitivity import OutputSensitivity
from vitcompact.calibration.sensitivity import _probe, answer, change, sensitivity
from vitcompact.data import from_tensor
from vitcompact.errors import UsageError
from vitcompact.models import inspect
from vitcompact.models.forward import features
from vitcompact.operators.merge import install_merging, spread
from vitcompact.options.selection import Keep
from vitcompact.planning import merging, schedules, serving
from vitcompact.planning.budget_plan import plan_budget
from vitcompact.planning.budget_report import budget_json
from vitcompact.planning.candidates import Losses, measure_losses
from vitcompact.planning.merging import Merging, measure_merging
from vitcompact.planning.planner import offered_merging
from vitcompact.planning.request import Budget
from vitcompact.plans.schema import MergeBy, Plan
from vitcompact.utils.timing import Reading

from .helpers import SIZE, perturbed_model, watch_sensitivity

AUTO = Budget("macs", 0.75, merge_tokens="auto")


@pytest.fixture(scope="module")
def vit() -> VisionTransformer:
    return perturbed_model("test_vit2", img_size=64, num_classes=5, num_heads=4, embed_dim=64, depth=3)


@pytest.fixture(scope="module")
def losses(vit: nn.Module, images: Tensor) -> Losses:
    return measure_losses(vit, from_tensor(images, 16))


@pytest.fixture(scope="module")
def every(vit: nn.Module, images: Tensor) -> tuple[Merging, ...]:
    return measure_merging(vit, from_tensor(images, 16), AUTO)


def is_even(schedule: tuple[int, ...]) -> bool:
    return schedule == spread(sum(schedule), len(schedule))


@pytest.fixture(scope="module")
def offered(every: tuple[Merging, ...]) -> tuple[Merging, ...]:
    """Those spread evenly."""
    return tuple(each for each in every if is_even(each.schedule))


def merged(model: nn.Module, schedule: tuple[int, ...]) -> nn.Module:
    model = copy.deepcopy(model)
    install_merging(model, schedule)
    return model


@pytest.mark.parametrize("classes", [5, 0])
def test_loss_has_the_metric_of_the_layers_losses(classes: int, images: Tensor) -> None:
    """A small change is the mean square of what it does along random directions of the output."""
    model = perturbed_model("test_vit2", img_size=64, num_classes=classes)
    generator = torch.Generator().manual_seed(0)
    found = answer(model, images[:1])
    parts = [found] if isinstance(found, Tensor) else [part for part in found if part is not None]
    moved = [1e-3 * torch.randn(part.shape, generator=generator) for part in parts]
    after = [part + step for part, step in zip(parts, moved, strict=True)]
    squares = []
    for _ in range(1000):
        leaves = [part.clone().requires_grad_(True) for part in parts]
        probe = _probe(leaves[0] if classes else (leaves[0], leaves[1]), generator)
        grads = torch.autograd.grad(probe, leaves)
        squares.append(sum(float((grad * step).sum()) for grad, step in zip(grads, moved, strict=True)) ** 2)
    seen = change(parts[0], after[0]) if classes else change((parts[0], parts[1]), (after[0], after[1]))
    assert float(seen) == pytest.approx(sum(squares) / len(squares), rel=0.2)


def test_what_is_offered_is_what_merging_does(
    vit: VisionTransformer, images: Tensor, offered: tuple[Merging, ...]
) -> None:
    whole = count(vit, SIZE).macs
    assert [sum(each.schedule) for each in offered] == sorted({sum(each.schedule) for each in offered})
    for each in offered[::4]:
        found = merged(vit, each.schedule)
        assert each.left == pytest.approx(count(found, SIZE).macs / whole)
        assert each.loss == pytest.approx(float(change(vit(images), found(images)).mean()), rel=1e-3)
    assert offered[-1].left <= AUTO.target < offered[-2].left, "the strongest one just meets the target alone"


def test_other_shapes_are_offered_too(
    vit: VisionTransformer, images: Tensor, losses: Losses, every: tuple[Merging, ...]
) -> None:
    """Each is measured end to end, and chosen where it loses least."""
    other = [each for each in every if not is_even(each.schedule)]
    assert {each.schedule[0] < each.schedule[-1] for each in other} == {True, False}
    for each in other[::3]:
        assert each.loss == pytest.approx(
            float(change(vit(images), merged(vit, each.schedule)(images)).mean()), rel=1e-3
        )
    strongest = min(other, key=lambda each: each.left)
    assert 0.68 < strongest.left <= AUTO.target
    best = plan_budget(vit, losses, AUTO, [replace(strongest, loss=0.0), *every])
    assert best.plan.merge_tokens == strongest.schedule


@pytest.mark.parametrize("shape", schedules.SHAPES)
def test_shapes_share_out_all_pairs(shape: str) -> None:
    for pairs in (1, 7, 100, 223):
        for depth in (1, 3, 12):
            schedule = schedules.shaped(pairs, depth, shape)
            assert (len(schedule), sum(schedule)) == (depth, pairs)
            assert min(schedule) >= 0
    first, *_, last = schedules.shaped(120, 12, shape)
    assert (first < last, first > last) == (shape == "later", shape == "earlier")
    assert schedules.shaped(100, 12) == spread(100, 12)


@pytest.mark.parametrize("keep", ["cls", "patches"])
def test_what_counts_of_features(keep: Keep, images: Tensor) -> None:
    """Losses of layers and of merging are of those features alone, and both add up to what counts without a word."""
    model = perturbed_model("test_vit2", img_size=64, num_classes=0, num_heads=2, embed_dim=32, depth=2)
    batches, budget = from_tensor(images[:8], 8), replace(AUTO, keep=keep)
    (found,) = measure_merging(model, batches, budget, (9, 9))
    (both,) = measure_merging(model, batches, AUTO, (9, 9))
    before, after = (features(each, images[:8]) for each in (model, merged(model, (9, 9))))
    part = 0 if keep == "cls" else 1
    angle = 2 - 2 * nn.functional.cosine_similarity(before[part], after[part], dim=-1)  # type: ignore[arg-type]
    assert found.loss == pytest.approx(float(angle.mean()), rel=1e-3)
    assert 0 < found.loss < both.loss
    sites = inspect(model).sites
    kept, whole = (sensitivity(model, sites, batches, keep=each, probes=8) for each in (keep, "both"))
    part_of_all = sum(kept.scale(site.name) for site in sites) / sum(whole.scale(site.name) for site in sites)
    assert 0 < part_of_all < 1


def test_what_counts_is_refused_where_nothing_is_chosen(vit: nn.Module, images: Tensor) -> None:
    with pytest.raises(UsageError, match="`keep='cls'` chooses among features, and this model has a head"):
        vitcompact.plan(vit, images=images, target_macs=0.8, keep="cls")
    with pytest.raises(UsageError, match="`keep='cls'` chooses among features, and this model has a head"):
        vitcompact.plan(vit, images=images, ratio=0.5, keep="cls")
    with pytest.raises(UsageError, match="`keep` says which errors count, and they are measured on images"):
        vitcompact.plan(vit, ratio=0.5, keep="cls")
    with pytest.raises(UsageError, match="`keep` takes 'cls', 'patches' or 'both', got 'all'"):
        vitcompact.plan(vit, images=images, target_macs=0.8, keep="all")  # type: ignore[arg-type]


def test_tokens_left_are_those_that_layers_see(vit: VisionTransformer, images: Tensor) -> None:
    schedule, seen = (3, 9, 1), {}
    found = merged(vit, schedule)
    for block in range(3):
        for name in (f"blocks.{block}.attn", f"blocks.{block}.mlp"):
            found.get_submodule(name).register_forward_pre_hook(
                lambda _, args, name=name: seen.update({name: args[0].shape[1]})
            )
    found(images[:1])
    (only,) = measure_merging(vit, from_tensor(images[:4]), AUTO, schedule)
    whole = seen["blocks.0.attn"]
    for name, tokens in seen.items():
        assert only.share(name, "ffn" if name.endswith("mlp") else "attention") == pytest.approx(tokens / whole)


def test_what_loses_less_is_chosen(vit: VisionTransformer, losses: Losses, offered: tuple[Merging, ...]) -> None:
    """Merging alone where it is for nothing, none where layers cost less, both where some are for nothing."""
    without = plan_budget(vit, losses, replace(AUTO, merge_tokens=None))
    free = [replace(each, loss=0.0) for each in offered]
    dear = [replace(each, loss=1e3) for each in offered]
    first = [replace(each, loss=0.0 if i < 3 else 1e3) for i, each in enumerate(offered)]
    more = [replace(each, loss=1.01 * without.loss) for each in offered]
    alone, none, both = (plan_budget(vit, losses, AUTO, choice) for choice in (free, dear, first))
    assert plan_budget(vit, losses, AUTO, more).plan == without.plan
    assert (alone.plan.layers, alone.plan.merge_tokens) == ((), offered[-1].schedule)
    assert none.plan == without.plan
    assert both.plan.merge_tokens == offered[2].schedule
    assert both.plan.layers
    assert 0 < both.loss < without.loss
    for found in (alone, none, both):
        assert 0.68 < found.after.macs / found.before.macs <= 0.75


def test_given_numbers_count_towards_the_target(vit: VisionTransformer, images: Tensor) -> None:
    compact = vitcompact.convert(vit, images=images, target_macs=0.8, merge_tokens=1)
    assert plan_of(compact).merge_tokens == (1, 1, 1)
    assert plan_of(compact).layers
    assert 0.75 < count(compact, SIZE).macs / count(vit, SIZE).macs <= 0.8


@pytest.mark.parametrize("keep_layers", [True, False])
def test_converted_folded_saved_and_loaded(
    keep_layers: bool,
    vit: VisionTransformer,
    images: Tensor,
    losses: Losses,
    offered: tuple[Merging, ...],
    tmp_path: Path,
) -> None:
    """Also where nothing but merging is left to do."""
    choice = [replace(each, loss=0.0 if i < 3 or not keep_layers else 1e3) for i, each in enumerate(offered)]
    plan = plan_budget(vit, losses, AUTO, choice).plan
    compact = vitcompact.convert(vit, plan=plan, images=images)
    assert bool(plan_of(compact).layers) == keep_layers
    folded = vitcompact.fold(compact, images=images)
    assert torch.allclose(folded(images), compact(images), atol=1e-5)
    assert plan_of(folded).merge_tokens == plan.merge_tokens
    assert count(folded, SIZE).macs / count(vit, SIZE).macs <= 0.75
    assert not torch.allclose(vitcompact.fold(compact, merge_tokens=0)(images), folded(images), atol=1e-5)
    vitcompact.save(folded, tmp_path / "out")
    again = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert torch.equal(again(images), folded(images))


def test_the_report_says_what_merging_costs(
    vit: VisionTransformer, losses: Losses, offered: tuple[Merging, ...]
) -> None:
    first = [replace(each, loss=0.0 if i < 3 else 1e3) for i, each in enumerate(offered)]
    document = budget_json(plan_budget(vit, losses, AUTO, first))
    assert document["merging"]["merge_tokens"] == list(offered[2].schedule)
    assert document["merging"]["saving"] == pytest.approx(1 - offered[2].left)
    assert len(document["merging"]["curve"]) == len(offered)
    assert all(point["left"] <= offered[2].left for point in document["curve"])
    none = budget_json(plan_budget(vit, losses, AUTO, [replace(each, loss=1e3) for each in offered]))
    assert (none["merging"]["merge_tokens"], none["merging"]["harm"]) == ([], 0.0)
    assert "merging" not in budget_json(plan_budget(vit, losses, replace(AUTO, merge_tokens=None)))


def test_time_is_read_off_between_what_was_timed(
    vit: VisionTransformer, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[int] = []

    def clock(*_: object) -> Callable[[Sequence[VisionTransformer]], list[Reading]]:
        def read(models: Sequence[VisionTransformer]) -> list[Reading]:
            pairs = [sum(block.r for block in model.blocks) for model in models]
            timed.extend(pairs)
            return [Reading((1 - each / 40,)) for each in pairs]

        return read

    monkeypatch.setattr(serving, "relative_latency", clock)
    found = measure_merging(vit, from_tensor(images[:4]), Budget("latency", 0.7, merge_tokens="auto"))
    assert len(timed) == merging.TIMED
    even = [each for each in found if is_even(each.schedule)]
    assert [each.left for each in even] == pytest.approx([1 - sum(each.schedule) / 40 for each in even])
    meets = min(sum(each.schedule) for each in even if each.left <= 0.7)
    assert meets == 12, "the strongest that just meets the target alone"
    assert sum(even[-1].schedule) == 14 <= merging.LARGEST_SHARE * 16, "and some that plans may need where it does not"
    macs = [count(merged(vit, spread(pairs, 3)), SIZE).macs for pairs in range(16)]
    for each in found:
        if not is_even(each.schedule):  # as long as an even one of as many MACs
            wanted = count(merged(vit, each.schedule), SIZE).macs
            near = min(range(16), key=lambda pairs: abs(macs[pairs] - wanted))
            assert each.left == pytest.approx(1 - near / 40, abs=1 / 40)


def test_blurred_times_are_read_again_and_never_rise(
    vit: VisionTransformer, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All schedules in the same rounds; more merging that was read as slower is as fast as less."""
    readings: list[int] = []
    sharp: list[tuple[float, ...]] = [(0.9, 0.9), (0.7, 0.7), (0.8, 0.8), (0.5, 0.5)]
    blurred = [(0.9, 0.9), (0.7, 0.7), (0.8, 0.8), (0.4, 0.6)]

    def clock(*_: object) -> Callable[[Sequence[nn.Module]], list[Reading]]:
        def read(models: Sequence[nn.Module]) -> list[Reading]:
            readings.append(len(models))
            return [Reading(shares) for shares in (blurred if rounds == "blurred" else sharp)]

        return read

    monkeypatch.setattr(serving, "relative_latency", clock)
    for rounds in ("sharp", "blurred"):
        readings.clear()
        found = measure_merging(vit, from_tensor(images[:4]), Budget("latency", 0.6, merge_tokens="auto"))
        assert readings == [merging.TIMED] * (1 if rounds == "sharp" else serving.MOST_READINGS)
        lefts = [each.left for each in sorted(found, key=lambda each: sum(each.schedule)) if is_even(each.schedule)]
        assert lefts == sorted(lefts, reverse=True)
        assert 0.75 in [pytest.approx(left) for left in lefts]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0.9, 0.7, 0.5], [0.9, 0.7, 0.5]),
        ([0.9, 0.5, 0.7], [0.9, 0.6, 0.6]),
        ([0.5, 0.6, 0.7], [0.6, 0.6, 0.6]),
        ([0.9, 0.6, 0.8, 0.7], [0.9, 0.7, 0.7, 0.7]),
        ([], []),
    ],
)
def test_falling(values: list[float], wanted: list[float]) -> None:
    assert merging.falling(values) == pytest.approx(wanted)


def test_what_is_timed_compares_tokens_as_the_plan_will(
    vit: VisionTransformer, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what was found to lose less; a schedule that was given is timed itself."""
    timed: list[tuple[tuple[int, ...], MergeBy]] = []

    def clock(*_: object) -> Callable[[Sequence[VisionTransformer]], list[Reading]]:
        def read(models: Sequence[VisionTransformer]) -> list[Reading]:
            timed.extend((tuple(block.r for block in model.blocks), model.blocks[0].by) for model in models)
            return [Reading((0.8,))] * len(models)

        return read

    monkeypatch.setattr(serving, "relative_latency", clock)
    batches, budget = from_tensor(images, 16), Budget("latency", 0.7, merge_tokens="auto")
    for better in ("sensitivity", "tokens"):
        found = merging.Matching(better, None)
        monkeypatch.setattr(merging, "best_matching", lambda *_, found=found: found)
        offered = measure_merging(vit, batches, budget)
        assert {each.by for each in offered} == {by for _, by in timed} == {better}
        timed.clear()
        (given,) = measure_merging(vit, batches, budget, (3, 2, 1))
        assert (timed, given.left) == ([((3, 2, 1), better)], 0.8)
        timed.clear()


def test_where_tokens_cannot_be_merged(images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    """`auto` leaves the budget to the operators and says so; numbers are refused before anything is measured."""
    swin = perturbed_model(
        "swin_tiny_patch4_window7_224", depths=(1, 1), num_heads=(2, 4), embed_dim=32, img_size=64, num_classes=5
    )
    with caplog.at_level(logging.WARNING, "vitcompact"):
        assert offered_merging(swin, from_tensor(images), AUTO) == ()
    assert "tokens of a SwinTransformer cannot be merged" in caplog.text
    with pytest.raises(UsageError, match="tokens of a SwinTransformer cannot be merged"):
        vitcompact.convert(swin, images=images, target_macs=0.8, merge_tokens=2)


def test_merging_saves_no_parameters(vit: VisionTransformer, images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vitcompact"):
        assert offered_merging(vit, from_tensor(images), Budget("params", 0.8, merge_tokens="auto")) == ()
    assert "saves no parameters" in caplog.text


def test_out_of_reach_even_with_merging(vit: VisionTransformer, images: Tensor) -> None:
    with pytest.raises(UsageError, match=r"`target_macs=0\.01` is out of reach"):
        vitcompact.convert(vit, images=images, target_macs=0.01, merge_tokens="auto")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge_tokens": "auto"}, "`merge_tokens='auto'` shares a budget"),
        ({"merge_tokens": "many"}, "`merge_tokens` takes 'auto' or numbers, got 'many'"),
        ({"merge_tokens": -1}, "takes a number of 0 or more"),
        ({"merge_tokens": (1, 2)}, "2 numbers were given for the 3 blocks"),
        ({"merge_tokens": 2, "terms": ("conv",)}, "does not go with 3x3 filters"),
        (
            {"merge_tokens": "auto", "target_macs": 0.8, "without": ("sensitivity",)},
            "leave out `without='sensitivity'`",
        ),
        ({"merge_tokens": 2, "filter_rank": 1}, "does not go with 3x3 filters"),
    ],
)
def test_bad_requests(options: dict[str, Any], message: str, vit: VisionTransformer, images: Tensor) -> None:
    with pytest.raises(UsageError, match=message):
        vitcompact.convert(vit, images=images, **options)


def test_spread_is_even() -> None:
    assert spread(7, 3) == (3, 2, 2)
    assert spread(0, 3) == (0, 0, 0)


@pytest.mark.parametrize("better", ["sensitivity", "tokens"])
def test_tokens_are_compared_by_what_loses_less(
    better: MergeBy,
    vit: VisionTransformer,
    images: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From end to end, for budgets as for numbers; the plan says which, and what it is replayed to is the same."""
    batches, worst = from_tensor(images, 16), {"sensitivity": "tokens", "tokens": "sensitivity"}[better]
    losses = merging._losses

    def rigged(original: nn.Module, ways: Any, *rest: Any) -> list[float]:
        found = losses(original, ways, *rest)
        return [1e3 if way.by == worst else loss for (_, way), loss in zip(ways, found, strict=True)]

    monkeypatch.setattr(merging, "_losses", rigged)
    assert {each.by for each in measure_merging(vit, batches, AUTO, known=OutputSensitivity(vit, batches))} == {better}
    for macs, ratio in ((0.8, None), (None, 0.5)):
        compact = vitcompact.convert(vit, images=images, merge_tokens=2, target_macs=macs, ratio=ratio)
        plan = plan_of(compact)
        assert (plan.merge_tokens, plan.merge_by) == ((2, 2, 2), better)
        monkeypatch.setattr(merging, "best_matching", None)
        again = vitcompact.convert(vit, images=images, plan=plan)
        assert torch.equal(again(images), compact(images))
        monkeypatch.undo()
        monkeypatch.setattr(merging, "_losses", rigged)


def test_without_what_it_is_measured_on(vit: VisionTransformer, images: Tensor) -> None:
    """Neither images nor output sensitivity: by the tokens themselves; a plan that needs both is refused early."""
    assert plan_of(vitcompact.convert(vit, ratio=0.5, merge_tokens=2)).merge_by == "tokens"
    bare = vitcompact.convert(vit, images=images, ratio=0.5, merge_tokens=2, without=["sensitivity"])
    assert plan_of(bare).merge_by == "tokens"
    plan = Plan((), merge_tokens=(2, 2, 2), merge_by="sensitivity")
    for given, without in ((None, ()), (images, ("sensitivity",))):
        with pytest.raises(UsageError, match="measured on images"):
            vitcompact.convert(vit, plan=plan, images=given, without=without)


@torch.no_grad()
def test_a_blind_head_leaves_tokens_to_themselves(vit: VisionTransformer, images: Tensor) -> None:
    """Nothing influences the output of a head of zeros, so nothing says what matters."""
    blind = copy.deepcopy(vit)
    for parameter in blind.head.parameters():
        parameter.zero_()
    compact = vitcompact.convert(blind, images=images, ratio=0.5, merge_tokens=2)
    assert plan_of(compact).merge_by == "tokens"


def test_sensitivity_is_measured_once(vit: VisionTransformer, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one pass for the layers and for what tokens are compared through; other layers later in another."""
    asked = watch_sensitivity(monkeypatch)
    vitcompact.convert(vit, images=images, target_macs=0.8, merge_tokens=2)
    assert len(asked) == 1
    found = OutputSensitivity(vit, from_tensor(images, 16))
    sites = inspect(vit).sites
    whole, parts = sensitivity(vit, sites, from_tensor(images, 16)), found.of(sites[:2])
    parts = found.of(sites)
    assert parts is not None
    for site in sites:
        assert torch.equal(parts.metric[site.name], whole.metric[site.name])
        assert torch.equal(parts.tokens[site.name], whole.tokens[site.name])
