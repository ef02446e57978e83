"""The whole job on small models: targets, training only where it is needed, and what is given up."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

import vitcompact
from vitcompact import CompactResult, UsageError
from vitcompact.compaction import job as room
from vitcompact.compaction import work
from vitcompact.compaction.judge import Judge, Verdict
from vitcompact.data import from_tensor
from vitcompact.folding.verify import perturbed
from vitcompact.options.compaction import CompactionOptions
from vitcompact.options.recipes import recipe
from vitcompact.planning.request import Budget, OutOfReach
from vitcompact.plans.schema import Plan
from vitcompact.utils.device import frozen_copy

SIDE = 32


@pytest.fixture(scope="module")
def vit() -> VisionTransformer:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=SIDE, num_classes=5, num_heads=4, depth=2)
    return perturbed(model.eval(), seed=1).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(64, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def labelled(vit: nn.Module, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    with torch.no_grad():
        return [(part, vit(part).argmax(1)) for part in images.split(32)]


@pytest.fixture(scope="module")
def result(vit: nn.Module, images: Tensor, labelled: list[tuple[Tensor, Tensor]]) -> CompactResult:
    return vitcompact.compact(vit, images, macs=0.7, max_drop=100.0, evaluation=labelled, latency_batch=2)


class Told:
    """A judge that says what it was told to, one verdict a model."""

    def __init__(self, *drops: float) -> None:
        self.drops, self.seconds, self.asked = list(drops), 0.0, 0

    def __call__(self, model: nn.Module) -> Verdict:
        self.asked += 1
        return Verdict(self.drops.pop(0) if len(self.drops) > 1 else self.drops[0], None, 0.9, 0.9, 90.0, 91.0, 100)

    def report(self, model: nn.Module, observer: object = None) -> Verdict:
        return self(model)


def work_with(
    monkeypatch: pytest.MonkeyPatch,
    vit: nn.Module,
    images: Tensor,
    judge: Any,
    minutes: float = 15.0,
    pace: float = 1.0,
) -> work.Work:
    """Steps that do nothing but take `pace` seconds each by a clock of their own."""
    now = [0.0]

    def takes(result: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            now[0] += kwargs["options"].max_minutes * 60 if "options" in kwargs else pace
            return result(*args, **kwargs)

        return run

    monkeypatch.setattr(work, "convert", takes(lambda model, **_: copy.copy(model)))
    tuned = type("Tuned", (), {"model": vit, "steps": 7})
    monkeypatch.setattr(work, "finetune", takes(lambda *_, **__: tuned))
    batches = from_tensor(images)
    return work.Work(
        *(vit, vit, batches, batches, judge, "cpu", 0, vitcompact.utils.progress.silent),
        clock=lambda: now[0],
        ends=60 * minutes,
    )


def test_the_result_is_folded_smaller_and_measured(result: CompactResult, vit: nn.Module, images: Tensor) -> None:
    before, after = result.before, result.after
    assert (before.top1, before.agreement) == (100.0, 1.0)
    assert after.macs <= 0.7 * before.macs
    assert after.params < before.params
    assert after.top1 is not None
    assert result.drop == pytest.approx(100.0 - after.top1)
    assert result.drop_interval is not None
    assert result.drop_interval[0] <= result.drop <= result.drop_interval[1]
    assert result.judged == 32  # the other half chose
    assert result.speedup_interval[0] <= result.speedup <= result.speedup_interval[1]
    assert result.plan.form == "folded"
    assert not result.missed
    with torch.no_grad():
        same = result.model(images).argmax(1) == vit(images).argmax(1)
        top1 = same[1::2].double().mean()
    assert 100 * float(top1) == pytest.approx(after.top1)
    assert [step.name for step in result.steps] == ["plan", "convert", "fold", "bench", "judge", "look inside"]


def test_json_has_the_keys_of_the_contract(result: CompactResult) -> None:
    document = result.to_json()
    assert (result.backend, result.batch_size, result.serving.dtype) == ("torch", 2, None)
    assert [document[name] for name in ("backend", "batch_size", "dtype")] == ["torch", 2, None]
    assert {"before", "after", "reached", "steps", "plan"} <= document.keys()
    assert (
        {"top1", "agreement", "latency_ms", "macs", "params"} <= document["before"].keys() == document["after"].keys()
    )
    assert document["reached"]["macs"] == result.after.macs / result.before.macs
    assert document["reached"]["asked"] == {"macs": 0.7, "max_drop": 100.0}
    assert Plan.from_json(document["plan"]) == result.plan
    assert len(repr(result)) < 200


@pytest.mark.parametrize(
    ("drops", "minutes", "done"),
    [
        ((0.3,), 15.0, ["convert"]),  # good enough as it is
        ((2.0, 0.4), 15.0, ["convert", "reconstruct"]),
        ((2.0, 1.0, 0.4), 15.0, ["convert", "reconstruct", "finetune"]),
        ((2.0,), 0.02, ["convert"]),  # no time for more
        ((2.0,), 0.1, ["convert", "reconstruct"]),  # nor for finetuning
        ((2.0, 0.4), 0.3, ["convert", "reconstruct"]),
    ],
)
def test_training_only_where_it_is_needed_and_time_allows(
    drops: tuple[float, ...],
    minutes: float,
    done: list[str],
    monkeypatch: pytest.MonkeyPatch,
    vit: nn.Module,
    images: Tensor,
) -> None:
    job = work_with(monkeypatch, vit, images, Told(*drops), minutes)
    attempt = job.improved(job.closed_form(Plan(())), allowed=0.5)
    assert [step.name for step in job.steps] == done
    assert attempt.drop == min(drops)
    assert job.clock() <= 60 * minutes


def test_training_that_made_it_worse_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, vit: nn.Module, images: Tensor
) -> None:
    job = work_with(monkeypatch, vit, images, Told(2.0, 3.0, 4.0))
    first = job.closed_form(Plan(()))
    assert job.improved(first, allowed=0.5) is first


@pytest.mark.parametrize(("allowed", "expected"), [(100.0, 0.3), (4.5, 0.6), (0.5, 0.9), (0.01, 0.9)])
def test_with_a_drop_alone_the_smallest_that_holds_it(
    allowed: float, expected: float, monkeypatch: pytest.MonkeyPatch, vit: nn.Module, images: Tensor
) -> None:
    """The ladder of sizes is climbed by halving; where none holds it, the largest."""
    asked: list[float] = []

    class Plans:
        def plan(self, unit: str, target: float) -> Any:
            asked.append(target)
            return type("Found", (), {"plan": Plan(()), "target": target})

    class Falls(Told):
        def __call__(self, model: nn.Module) -> Verdict:
            return Verdict(25 * (1 - asked[-1]) ** 2, None, None, None)

    job = work_with(monkeypatch, vit, images, Falls())
    found, _ = room._smallest(Plans(), job, allowed)  # type: ignore[arg-type]
    assert found.target == expected  # type: ignore[attr-defined]
    assert len(asked) <= 3


def test_what_cannot_be_had_is_given_up_and_said(
    vit: nn.Module, images: Tensor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "Judge", lambda *_: Told(7.0))
    with caplog.at_level(logging.WARNING, "vitcompact"):
        result = vitcompact.compact(vit, images, params=0.6, max_drop=0.5, minutes=0.01, latency_batch=2)
    assert "`max_drop` was given up for `params`: 7.00 points were lost, 0.5 were allowed" in caplog.text
    assert result.reached["gave_up"] == {"max_drop": "7.00 points were lost, 0.5 were allowed"}
    assert result.reached["params"] <= 0.6


def judge_of(model: nn.Module, images: Any) -> Judge:
    return Judge(frozen_copy(model, "cpu"), images, "cpu", vitcompact.utils.progress.silent)


def test_without_labels_answers_are_compared(vit: VisionTransformer, images: Tensor) -> None:
    same = judge_of(vit, from_tensor(images, 10)).report(copy.deepcopy(vit))
    assert (same.drop, same.agreement, same.top1, same.num_samples) == (0.0, 1.0, None, 32)
    headless = copy.deepcopy(vit)
    headless.reset_classifier(0)
    features = judge_of(headless, from_tensor(images))
    assert features(perturbed(copy.deepcopy(headless), seed=3)).drop > 0
    assert features(headless).drop == pytest.approx(0.0, abs=1e-4)


def test_the_original_is_run_once(vit: nn.Module, labelled: list[tuple[Tensor, Tensor]]) -> None:
    rows = []
    judge = judge_of(vit, labelled)
    judge.original.register_forward_hook(lambda *seen: rows.append(len(seen[1][0])))
    for half in (judge, judge.report):
        first, second = half(vit), half(copy.deepcopy(vit))
        assert first == second
        assert (first.drop, first.original_top1) == (0.0, 100.0)
    assert sum(rows) == 64


@pytest.mark.parametrize("form", ["batches", "two tensors", "a tensor", "lists"])
def test_what_chooses_does_not_report(form: str, vit: nn.Module, images: Tensor) -> None:
    """A model that is right on one half of the images only: each half says so of itself."""
    with torch.no_grad():
        labels = vit(images).argmax(1)
    labels[::2] = (labels[::2] + 1) % 5
    pairs = {
        "batches": list(zip(images.split(9), labels.split(9), strict=True)),
        "two tensors": (images, labels),
        "lists": [list(pair) for pair in zip(images.split(7), labels.split(7), strict=True)],
    }
    judge = judge_of(vit, pairs.get(form, images))
    chosen, reported = judge(vit), judge.report(vit)
    assert (chosen.num_samples, reported.num_samples) == (32, 32)
    assert (chosen.top1, reported.top1) == ((None, None) if form == "a tensor" else (0.0, 100.0))


def test_a_single_image_does_both(vit: nn.Module, images: Tensor) -> None:
    judge = judge_of(vit, images[:1])
    assert (judge(vit).num_samples, judge.report(vit).num_samples) == (1, 1)


@pytest.mark.parametrize("number", [1, 7, 64])
def test_images_that_judge_are_kept_from_all_else(
    number: int, vit: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every image has a mark in its corner; whoever works notes the marks it sees."""
    marked = images[:number].clone()
    marked[:, 0, 0, 0] = torch.arange(number) / 8
    seen: dict[str, set[float]] = {"work": set(), "judge": set()}

    def note(who: str, batches: Any) -> None:
        seen[who] |= {float(mark) for batch in batches for mark in batch[:, 0, 0, 0]}

    class Stops(Exception):
        pass

    def work_on(*given: Any, **_: Any) -> None:
        for batches in (given[2], given[3]):  # to calibrate, and to train on
            note("work", batches)
        note("judge", given[4].images)
        raise Stops

    monkeypatch.setattr(room, "Work", work_on)
    with pytest.raises(Stops):
        vitcompact.compact(vit, marked, macs=0.7)
    whole = {float(mark) for mark in marked[:, 0, 0, 0]}
    if number == 64:
        assert not seen["work"] & seen["judge"]
        assert len(seen["judge"]) == 16
        assert seen["work"] | seen["judge"] == whole
    else:  # too few to take any apart
        assert seen["work"] == seen["judge"] == whole


@pytest.mark.parametrize(("minutes", "tried"), [(15.0, 3), (0.06, 1), (0.09, 2)])
def test_no_further_size_is_tried_than_time_allows(
    minutes: float, tried: int, monkeypatch: pytest.MonkeyPatch, vit: nn.Module, images: Tensor
) -> None:
    class Plans:
        def plan(self, unit: str, target: float) -> Any:
            return type("Found", (), {"plan": Plan(()), "target": target})

    judge = Told(0.1)
    job = work_with(monkeypatch, vit, images, judge, minutes, pace=2.0)
    _, attempt = room._smallest(Plans(), job, 0.5)  # type: ignore[arg-type]
    assert (judge.asked, attempt.drop) == (tried, 0.1)
    assert job.clock() <= 60 * minutes


def test_time_is_told_where_it_was_not_enough(vit: nn.Module, images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    ticks = iter(range(10**6))
    with caplog.at_level(logging.WARNING, "vitcompact"):
        vitcompact.compact(
            *(vit, images), macs=0.8, minutes=0.05, max_drop=100.0, latency_batch=2, clock=lambda: float(next(ticks))
        )
    assert "`minutes=0.05` were given" in caplog.text


@pytest.mark.parametrize("name", ["gentle", "balanced", "small"])
def test_presets_are_recipes_that_come_with_the_package(name: str) -> None:
    asked, given = CompactionOptions(preset=name), recipe(name)  # type: ignore[arg-type]
    assert asked.size == ("macs", given["macs"])
    assert asked.time == given["minutes"]
    assert CompactionOptions(preset=name, minutes=3.0).time == 3.0  # type: ignore[arg-type]
    assert CompactionOptions(**given).size == asked.size  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speedup": 1.5, "macs": 0.7}, "one of `speedup` and `macs`"),
        ({"params": 0.5, "preset": "small"}, "one of `params` and `preset`"),
        ({"speedup": 0.9}, "`speedup` must be above 1"),
        ({"macs": 1.0}, "`macs` must be between 0 and 1"),
        ({"max_drop": -1.0}, "`max_drop` must be 0 to 100"),
        ({"minutes": 0.0}, "`minutes` must be above 0"),
        ({"preset": "tiny"}, "unknown `preset` 'tiny'"),
        ({"protect": ["nothing*"]}, "matches no layer"),
        ({"macs": 0.001}, r"`macs=0\.001` is out of reach"),
    ],
)
def test_bad_requests(options: dict[str, Any], message: str, vit: nn.Module, images: Tensor) -> None:
    with pytest.raises(UsageError, match=message):
        vitcompact.compact(vit, images, **options)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"speedup": 1.5}, "`speedup=1.5` is out of reach with these operators: about 1.25 times as fast is the most"),
        ({"params": 0.1}, "`params=0.1` is out of reach with these operators: about 0.80 is the least"),
        ({"preset": "small"}, "`macs=0.5` is out of reach with these operators: about 0.80 is the least"),
    ],
)
def test_a_size_out_of_reach_is_told_as_it_was_asked_for(asked: dict[str, Any], message: str) -> None:
    def plan(unit: Any, target: float) -> None:
        raise Budget(unit, target).out_of_reach(0.8)

    planner: Any = SimpleNamespace(plan=plan)
    with pytest.raises(OutOfReach) as caught:
        room._planned(planner, CompactionOptions(**asked))
    assert str(caught.value) == message


def test_a_compacted_model_is_refused(result: CompactResult, images: Tensor) -> None:
    with pytest.raises(UsageError, match="converted already"):
        vitcompact.compact(result.model, images)
