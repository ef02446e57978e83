"""The smallest model that loses no more than it may: budgets are tried from one measurement of the layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitcompact.attached import results
from vitcompact.compaction.recalled import Recalled
from vitcompact.data import ImageBatches, open_model
from vitcompact.errors import UsageError
from vitcompact.evaluation import evaluate
from vitcompact.models.forward import num_classes
from vitcompact.options.selection import Keep, LimitOptions, MergeTokens, Only
from vitcompact.planning.curves import Curves
from vitcompact.planning.request import OutOfReach
from vitcompact.surgery.convert import convert
from vitcompact.surgery.reconstruct import ReconstructOptions
from vitcompact.utils.intervals import Interval
from vitcompact.utils.progress import Progress, silent

FIRST, LEAST, WHOLE = 0.6, 0.2, 1.0
"""Share of the MACs that is tried first, and the bounds of the search."""
TRIES = 6
CLOSE = 0.02
"""Shares nearer to each other than this are not told apart."""


@dataclass(frozen=True)
class Tried:
    """One budget that was tried.

    Attributes:
        share: of the MACs, that was to be left.
        score: what it was judged by: points of top-1 lost, agreement, or cosine; None where it is out of reach.
        interval: 95 % interval of the score, where there is one.
        holds: whether it is within the limit.
    """

    share: float
    score: float | None
    interval: Interval | None
    holds: bool

    def better_than(self, other: Tried) -> bool:
        """One that holds before one that does not; of those that hold the smallest, of the others the largest."""
        if self.holds != other.holds:
            return self.holds
        return self.share < other.share if self.holds else self.share > other.share


@dataclass(frozen=True, repr=False)
class Within:
    """What a search has found.

    Attributes:
        model: the smallest that holds, in training form; where none does, the best.
        share: of the MACs, that it was planned for.
        held: whether it is within the limit.
        limit, asked: the name of the limit and its value.
        tried: in the order in which it was tried.
        num_samples: images that judged.
    """

    model: nn.Module
    share: float
    held: bool
    limit: str
    asked: float
    tried: tuple[Tried, ...]
    num_samples: int

    def to_json(self) -> dict[str, Any]:
        """All but the model."""
        names = ("share", "held", "limit", "asked", "num_samples")
        return {**{name: getattr(self, name) for name in names}, "tried": [asdict(each) for each in self.tried]}

    def __repr__(self) -> str:
        told = "held" if self.held else "missed"
        return f"<Within: {self.limit} {self.asked:g} {told} at {self.share:g} of the MACs, {len(self.tried)} tried>"


def convert_within(
    model: nn.Module,
    images: Tensor | Iterable[Tensor] | ImageBatches,
    *,
    max_drop: float | None = None,
    min_agreement: float | None = None,
    min_cosine: float | None = None,
    evaluation: Iterable[Any] | None = None,
    ops: Iterable[str] | None = None,
    merge_tokens: MergeTokens | None = None,
    keep: Keep | None = None,
    only: Only | None = None,
    protect: Iterable[str] = (),
    size_multiple: int = 8,
    reconstruct: int | ReconstructOptions = 0,
    tries: int = TRIES,
    batch_size: int = 64,
    cache_gb: float = 4.0,
    curves: Curves | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    progress: Progress = silent,
) -> Within:
    """The conversion with the fewest MACs that stays within a limit, by bisection over budgets.

        found = vitcompact.convert_within(model, images, max_drop=0.5, evaluation=labelled)
        found = vitcompact.convert_within(model, images, min_agreement=0.98)

    The layers are measured once; each try is a plan and a conversion. A limit is held by the score itself, not by its
    interval, and the score of the best of several tries is a little too good: judge the result on other images.

    Args:
        max_drop: percentage points of top-1 that may be lost on `evaluation`.
        min_agreement: share of images with the same top-1 class, of calibration images held out from every fit.
        min_cosine: mean cosine of the outputs to the original's, of the same.
        evaluation: batches `(images, labels)`, which can be read several times; for `max_drop`.
        tries: conversions, at most.
        Others as those of `convert`.

    Raises:
        UsageError: not one limit, `max_drop` without `evaluation`, or a model without a head that is judged by classes.
        NothingToCompactError, DataError: as `convert`.
    """
    limits = LimitOptions(max_drop=max_drop, min_agreement=min_agreement, min_cosine=min_cosine)
    limit, asked = limits.only_one
    classes = bool(num_classes(open_model(model).model))
    check_limit(limit, classes=classes, labelled=evaluation is not None)
    kept = Curves() if curves is None else curves
    reference = Recalled(open_model(model).model)
    tried: list[Tried] = []
    best: tuple[Tried, nn.Module] | None = None
    fails, holds, samples = LEAST, WHOLE, 0
    share = FIRST
    while sum(each.score is not None for each in tried) < tries and holds - fails >= CLOSE:
        try:
            found = convert(
                model,
                images=images,
                target_macs=share,
                ops=ops,
                merge_tokens=merge_tokens,
                keep=keep,
                only=only,
                protect=protect,
                size_multiple=size_multiple,
                reconstruct=reconstruct,
                batch_size=batch_size,
                cache_gb=cache_gb,
                curves=kept,
                device=device,
                seed=seed,
                progress=progress,
            )
        except OutOfReach:
            tried.append(Tried(share, None, None, False))
        else:
            score, interval, samples = _score(found, reference, limit, evaluation, device, progress)
            held = score <= asked if limit == "max_drop" else score >= asked
            tried.append(Tried(share, score, interval, held))
            if best is None or tried[-1].better_than(best[0]):
                best = tried[-1], found
        fails, holds = (fails, share) if tried[-1].holds else (share, holds)
        share = round((fails + holds) / 2, 3)
    if best is None:
        raise UsageError("no budget that was tried can be reached: " + ", ".join(f"{each.share:g}" for each in tried))
    return Within(best[1], best[0].share, best[0].holds, limit, asked, tuple(tried), samples)


def check_limit(limit: str, *, classes: bool, labelled: bool) -> None:
    """Refuse what cannot be judged.

    Raises:
        UsageError: see above.
    """
    if limit == "max_drop" and not labelled:
        raise UsageError("`max_drop` is judged on labelled images: give `evaluation`, or use `min_agreement`")
    if limit != "min_cosine" and not classes:
        raise UsageError(f"`{limit}` is judged by classes, and this model has no head: use `min_cosine`")


def _score(
    found: nn.Module,
    reference: nn.Module,
    limit: str,
    evaluation: Iterable[Any] | None,
    device: str | torch.device,
    progress: Progress,
) -> tuple[float, Interval | None, int]:
    """The score, its interval where there is one, and the images that it is of."""
    if limit == "max_drop":
        assert evaluation is not None  # see `check_limit`
        seen = evaluate(found, evaluation, reference=reference, device=device, progress=progress)
        if seen.top1_change is None or seen.top1_change_interval is None:
            raise UsageError("`max_drop` is judged on labelled images, and `evaluation` has no labels")
        low, high = seen.top1_change_interval
        return -seen.top1_change, (-high, -low), seen.num_samples
    fidelity = results(found).fidelity
    assert fidelity is not None  # there were images
    if limit == "min_cosine":
        return fidelity.cosine, None, fidelity.num_samples
    assert fidelity.agreement is not None  # it has a head
    return fidelity.agreement, fidelity.agreement_interval, fidelity.num_samples
