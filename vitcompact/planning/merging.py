"""What merging tokens would save and cost: schedules that a budget may use beside its operators.

Nothing is fitted here, so the loss increase of a schedule is measured from end to end, on the original, in a budget's
own unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from statistics import fmean

import torch
from torch import Tensor, nn

from vitcompact.calibration.output_sensitivity import OutputSensitivity
from vitcompact.calibration.sensitivity import answer, change
from vitcompact.data import ImageBatches, first_images, processes_of, rebatched, resolve_input
from vitcompact.models.cost import count, meta_copy
from vitcompact.models.plain_vit import plain_trunk
from vitcompact.operators.merge import install_merging, num_patches, set_metrics, spread, token_metrics
from vitcompact.options.selection import Keep
from vitcompact.planning.request import Budget, Unit
from vitcompact.planning.schedules import EVEN, SHAPES, shaped
from vitcompact.planning.serving import MOST_READINGS, TOLERANCE
from vitcompact.plans.schema import MergeBy, Plan
from vitcompact.utils.device import device_of, frozen_copy
from vitcompact.utils.progress import Progress, silent
from vitcompact.utils.timing import settled

STEPS = 12
LARGEST_SHARE = 0.9
"""Even schedules that are tried merge up to this share of the patches, in so many equal steps."""
STRENGTHS = (0.5, 0.7, 0.85, 1.0)
"""Schedules of every other shape merge these shares of the strongest one's pairs."""
BEYOND = 3
"""Further steps of every shape, past the target, for a budget of latency: what is read off may turn out slower."""
JUDGED_IMAGES = 64
MICRO_BATCH = 16
TIMED = 4
"""Schedules that are timed for a budget of latency, in the same rounds; the others are read off between them."""


@dataclass(frozen=True)
class Merging:
    """One schedule of merging.

    Attributes:
        schedule: pairs of tokens that each block merges.
        left: share of the original's cost with this alone, in the unit of the budget.
        loss: mean squared change of the model's output, as losses of layers are.
        tokens: share of the tokens that is left in each block for its attention, and for its FFN.
        by: what tokens are compared by.
    """

    schedule: tuple[int, ...]
    left: float
    loss: float
    tokens: tuple[tuple[float, float], ...]
    by: MergeBy = "tokens"

    def share(self, name: str, kind: str) -> float:
        """Tokens that the layer at module path `name` of a plain trunk still sees."""
        block = int(name.split(".")[1])
        return self.tokens[block][kind == "ffn"]


@dataclass(frozen=True)
class Matching:
    """What tokens are compared by, and through.

    Attributes:
        metrics: of each block, where it is output sensitivity.
    """

    by: MergeBy
    metrics: Sequence[Tensor] | None = None


PLAIN = Matching("tokens")


def measure_merging(
    original: nn.Module,
    images: ImageBatches,
    budget: Budget,
    schedule: Sequence[int] | None = None,
    *,
    known: OutputSensitivity | None = None,
    progress: Progress = silent,
) -> tuple[Merging, ...]:
    """The schedules that a budget may choose from: up to what meets the target alone, of time a few beyond.

    Args:
        original: a plain ViT in eval mode.
        schedule: pairs of tokens for each block; None offers evenly spread ones.
        known: of `original`; tokens are compared by it where that loses less.

    Raises:
        UsageError: tokens of this model cannot be merged.
    """
    timed = budget.unit == "latency"
    strongest = _even(original, budget.target) if schedule is None else tuple(schedule)
    if not any(strongest):
        return ()
    images = first_images(images, JUDGED_IMAGES)
    compared = best_matching(original, images, strongest, known, progress)
    left = _left(original, budget, compared, evenly=schedule is None)
    schedules = [strongest] if schedule is not None else _schedules(original, left, budget.target, BEYOND * timed)
    losses = _losses(original, [(each, compared) for each in schedules], images, budget.keep, progress)
    return tuple(
        Merging(each, left(each), loss, _tokens(original, each), compared.by)
        for each, loss in zip(schedules, losses, strict=True)
    )


def merging_as_given(
    plan: Plan,
    original: nn.Module,
    images: ImageBatches | None,
    schedule: Sequence[int],
    known: OutputSensitivity | None,
    progress: Progress = silent,
) -> Plan:
    """The same plan, with so many pairs of tokens that each block merges, compared by what loses less.

    Args:
        images: None compares tokens by themselves.
        schedule: empty for no merging.
        known: as in `best_matching`.
    """
    matching = best_matching(original, images, schedule, known, progress) if schedule and images is not None else PLAIN
    return replace(plan, merge_tokens=tuple(schedule), merge_by=matching.by)


def best_matching(
    original: nn.Module,
    images: ImageBatches,
    schedule: Sequence[int],
    known: OutputSensitivity | None,
    progress: Progress = silent,
) -> Matching:
    """What to compare tokens by: themselves, or weighted by output sensitivity where less is lost, from end to end.

    Args:
        images: the first `JUDGED_IMAGES` decide.
        schedule: pairs of tokens that each block merges.
        known: of `original`; None leaves it at the tokens themselves.
    """
    metrics = None if known is None else token_metrics(known)
    if known is None or metrics is None:
        return PLAIN
    weighted = Matching("sensitivity", metrics)
    both = [(tuple(schedule), PLAIN), (tuple(schedule), weighted)]
    before, after = _losses(original, both, first_images(images, JUDGED_IMAGES), known.keep, progress)
    return weighted if after < before else PLAIN


def _even(original: nn.Module, target: float) -> tuple[int, ...]:
    """The even schedule that just leaves the target's share of the MACs, if it can."""
    depth, macs = len(plain_trunk(original)[0]), _counted(original, "macs")
    return spread(_strongest(lambda pairs: macs(spread(pairs, depth)), target, num_patches(original)), depth)


def _schedules(
    original: nn.Module, left: Callable[[tuple[int, ...]], float], target: float, beyond: int
) -> list[tuple[int, ...]]:
    """Of every shape, up to what just meets the target alone if it can be met so, and so many steps beyond."""
    depth, patches = len(plain_trunk(original)[0]), num_patches(original)
    found: dict[tuple[int, ...], None] = {}
    for shape in SHAPES:
        most = _strongest(lambda pairs, shape=shape: left(shaped(pairs, depth, shape)), target, patches)  # type: ignore[misc]
        shares = [i / STEPS for i in range(1, STEPS + 1)] if shape == EVEN else list(STRENGTHS)
        shares += [1 + i / STEPS for i in range(1, beyond + 1)]
        numbers = sorted({min(round(most * share), int(LARGEST_SHARE * patches)) for share in shares} - {0})
        found |= dict.fromkeys(shaped(pairs, depth, shape) for pairs in numbers)
    return list(found)


def _strongest(left: Callable[[int], float], target: float, patches: int) -> int:
    """The fewest pairs that meet the target alone, or as many as are merged at most."""
    low, high = 0, int(LARGEST_SHARE * patches)
    if left(high) >= target:
        return high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if left(middle) <= target else (middle + 1, high)
    return low


def _counted(original: nn.Module, unit: Unit) -> Callable[[tuple[int, ...]], float]:
    """A function that gives the share of the original's MACs or parameters that a schedule leaves."""
    size = resolve_input(original).input_size
    whole = getattr(count(original, size), unit)

    @cache
    def left(schedule: tuple[int, ...]) -> float:
        share: float = getattr(count(_merging(meta_copy(original), schedule), size, spent=True), unit) / whole
        return share

    return left


def _left(
    original: nn.Module, budget: Budget, matching: Matching, *, evenly: bool
) -> Callable[[tuple[int, ...]], float]:
    """A function that gives the share of the original's cost that a schedule leaves, in the budget's unit.

    Args:
        evenly: of time, it is read off between even schedules; else each schedule is timed.
    """
    if budget.unit != "latency":
        return _counted(original, budget.unit)
    read, device = budget.serving.reader(original), device_of(original)

    def timed(schedules: Sequence[tuple[int, ...]]) -> list[float]:
        merging = [_merging(frozen_copy(original, device), schedule, matching) for schedule in schedules]
        return [each.share for each in settled(lambda: read(merging), TOLERANCE, MOST_READINGS)]

    return _between_even(original, timed) if evenly else lambda schedule: timed([schedule])[0]


def _between_even(
    original: nn.Module, timed: Callable[[Sequence[tuple[int, ...]]], list[float]]
) -> Callable[[tuple[int, ...]], float]:
    """A function that gives the share of the original's time that a schedule leaves, between what was timed.

    Even schedules are timed, and read off by their pairs; those of another shape by the MACs that they leave.
    """
    depth, patches = len(plain_trunk(original)[0]), num_patches(original)
    numbers = [round(LARGEST_SHARE * patches * i / TIMED) for i in range(1, TIMED + 1)]
    times = [(0, 1.0), *zip(numbers, falling(timed([spread(n, depth) for n in numbers])), strict=True)]
    macs = _counted(original, "macs")
    spared = [1 - macs(spread(n, depth)) if n else 0.0 for n, _ in times]

    def left(schedule: tuple[int, ...]) -> float:
        pairs = sum(schedule)
        if schedule == spread(pairs, depth):
            return _between([(float(n), time) for n, time in times], pairs)
        by_macs = [(saving, time) for saving, (_, time) in zip(spared, times, strict=True)]
        return _between(by_macs, 1 - macs(schedule))

    return left


def falling(values: Sequence[float]) -> list[float]:
    """The nearest values, in squares, of which none is above the one before: those that are become their mean."""
    pools: list[list[float]] = []
    for value in values:
        pools.append([value])
        while len(pools) > 1 and fmean(pools[-1]) > fmean(pools[-2]):
            last = pools.pop()
            pools[-1] += last
    return [fmean(pool) for pool in pools for _ in pool]


def _between(points: Sequence[tuple[float, float]], place: float) -> float:
    """What lies at `place` on the line through points, which go up; beyond the last, its value."""
    for (before, first), (after, second) in pairwise(points):
        if place <= after:
            return first + (second - first) * (place - before) / max(after - before, 1e-12)
    return points[-1][1]


@torch.no_grad()
def _losses(
    original: nn.Module,
    ways: Sequence[tuple[tuple[int, ...], Matching]],
    images: ImageBatches,
    keep: Keep,
    progress: Progress,
) -> list[float]:
    """Mean loss increase of each schedule and matching; the original answers once, its copies share its weights."""
    device, seen = device_of(original), 0
    merging = [_merging(frozen_copy(original, device), *each) for each in ways]
    totals = [0.0] * len(ways)
    progress.start("merging tokens", len(ways) * -(-images.num_samples // MICRO_BATCH))
    for part in rebatched(images, MICRO_BATCH):
        part = part.to(device)
        before = answer(original, part, keep)
        for place, model in enumerate(merging):
            totals[place] += float(change(before, answer(model, part, keep)).sum())
            progress.advance()
        seen += len(part)
    progress.finish()
    *totals, images_seen = processes_of(images).sums(*totals, seen)
    return [total / images_seen for total in totals]


def _tokens(original: nn.Module, schedule: Sequence[int]) -> tuple[tuple[float, float], ...]:
    """Shares of the tokens left before and after each block's merging."""
    prefix = plain_trunk(original)[1]
    whole = left = num_patches(original) + prefix
    shares = []
    for pairs in schedule:
        after = left - min(pairs, (left - prefix) // 2)
        shares.append((left / whole, after / whole))
        left = after
    return tuple(shares)


def _merging(model: nn.Module, schedule: Sequence[int], matching: Matching = PLAIN) -> nn.Module:
    install_merging(model, schedule, matching.by)
    if matching.metrics is not None:
        set_metrics(model, matching.metrics)
    return model
