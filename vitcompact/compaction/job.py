"""The whole job: the smallest plan that was asked for, judged, and trained only as far as it has to be."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vitcompact.analysis import AnalysisReport, analyze_plan
from vitcompact.benchmarking import BenchResult, bench
from vitcompact.compaction.judge import Judge, Verdict
from vitcompact.compaction.plans import Planner
from vitcompact.compaction.result import CompactResult, Measures, Step
from vitcompact.compaction.work import Attempt, Work
from vitcompact.data import (
    ImageBatches,
    check_model,
    first_images,
    images_for,
    names_to_show,
    open_model,
    resolve_input,
    taken_apart,
)
from vitcompact.errors import UsageError
from vitcompact.evaluation import MostChanged
from vitcompact.exporting import RUNTIMES
from vitcompact.models.cost import Cost, count
from vitcompact.models.forward import num_classes
from vitcompact.options.compaction import CompactionOptions, Preset
from vitcompact.options.selection import MergeTokens
from vitcompact.options.shared import AmpDType, Backend
from vitcompact.planning.budget_plan import BudgetPlan
from vitcompact.planning.budget_report import budget_json
from vitcompact.planning.request import OutOfReach
from vitcompact.planning.scope import check_patterns
from vitcompact.planning.selection import patterns
from vitcompact.planning.serving import Serving
from vitcompact.utils.device import frozen_copy
from vitcompact.utils.progress import Progress, notebooks

logger = logging.getLogger("vitcompact")

LADDER = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of the MACs that are tried where only the drop is limited."""
USUAL_DROP = 0.5
"""Points that may be lost before training is worth its time, where no limit was given."""
BENCH_SECONDS, BENCH_SHARE = 30.0, 0.1
"""Timing takes this long, and no more than this share of the whole time."""
OVERRUN = 0.05
LOOKED_AT = 64
"""Images on which likeness of heads and spectra are measured for pages."""
SLACK = 0.03
"""How far a measured speed-up may stay below what was asked for, as budgets of latency are met."""


def compact(
    model: nn.Module,
    images: Tensor | Iterable[Tensor] | ImageBatches,
    *,
    speedup: float | None = None,
    latency_backend: Backend | None = None,
    latency_batch: int | None = None,
    latency_dtype: AmpDType | None = None,
    macs: float | None = None,
    params: float | None = None,
    preset: Preset | None = None,
    max_drop: float | None = None,
    minutes: float | None = None,
    evaluation: Iterable[Any] | None = None,
    training: Any = None,
    protect: Iterable[str] = (),
    size_multiple: int = 8,
    merge_tokens: MergeTokens | None = None,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    seed: int = 0,
    progress: Progress = notebooks,
    clock: Callable[[], float] = time.monotonic,
    began: float | None = None,
) -> CompactResult:
    """Make a model smaller or faster by as much as was asked for, at the least loss that the time allows.

        result = vitcompact.compact(model, images, speedup=1.5, max_drop=0.5, evaluation=labelled)
        vitcompact.save(result.model, "out")

    Plans (a budget over all operators, merging tokens weighed by itself where the model allows it), converts in closed
    form, and judges. Where more was lost than `max_drop`, blocks are reconstructed and the model is finetuned, as far
    as `minutes` reach. With `max_drop` alone, the smallest model that holds it is looked for. Folds and times what
    comes out.

    Args:
        model: a timm module; it is untouched.
        images: normalised calibration images `(n, 3, height, width)` or batches of them, no labels.
        speedup: how many times as fast on `device`, above 1.
        latency_backend: what both models are timed in, and planned for: `torch` (None too), `compile`, or `onnxruntime`
            and `openvino` on the CPU.
        latency_batch: images per batch where they are timed; None is 8.
        latency_dtype: number format in which they are timed, `bfloat16` or `float16`; None is float32.
        macs, params: share that is to be left, in (0, 1).
        preset: `gentle`, `balanced` or `small`; `balanced` where nothing else is asked for.
        max_drop: percentage points of top-1 that may be lost; without labels, of images answered otherwise; of a model
            without a head, of the cosine of its outputs.
        minutes: for the whole job, 15 or those of the preset. A plan, its closed form, folding and timing are always
            done; reconstruction, finetuning and further sizes only where they fit in.
        evaluation: batches `(images, labels)` to judge on, read several times: one half chooses, the other is reported.
            None sets a quarter of `images` apart for that.
        training: what `finetune` learns from, without the images that judge; None takes those of `images` that do not.
        protect: glob patterns of module paths to leave alone.
        size_multiple: as in `convert`.
        merge_tokens: as in `convert`; None weighs it where tokens can be merged, 0 is none.
        clock: seconds, monotonic; the job began at `began` by it, or begins now.

    Raises:
        NothingToCompactError: no layer of this architecture can be compacted.
        UsageError: bad options, a target out of reach, or a model that was already converted.
        DataError: images that the model does not take.
    """
    asked = CompactionOptions(
        speedup=speedup,
        latency_backend=latency_backend,
        latency_batch=latency_batch,
        latency_dtype=latency_dtype,
        macs=macs,
        params=params,
        preset=preset,
        max_drop=max_drop,
        minutes=minutes,
    )
    serving = Serving.of(latency_backend, latency_batch, latency_dtype)
    began, opened = clock() if began is None else began, open_model(model)
    if opened.path:
        raise UsageError(f"compact takes the timm module itself: pass `model.{opened.path}`, and put the result there")
    model = opened.model
    check_model(model)
    if getattr(model, "vitcompact_plan", None) is not None:
        raise UsageError("this model is converted already; compact the original checkpoint instead")
    check_patterns(model, patterns(protect))
    batches = images_for(model, images, batch_size)
    original = frozen_copy(model, device)
    batches, judging = (batches, evaluation) if evaluation is not None else taken_apart(batches)
    judge = Judge(original, judging, device, progress, clock)
    planner = Planner(original, batches, protect, size_multiple, merge_tokens, serving, progress)
    work = Work(
        model,
        original,
        batches,
        batches if training is None else training,
        judge,
        device,
        seed,
        progress,
        clock=clock,
        ends=began + 60 * asked.time,
        reserved=min(BENCH_SECONDS, BENCH_SHARE * 60 * asked.time),
    )
    if asked.size is None:
        assert max_drop is not None
        found, attempt = _smallest(planner, work, max_drop)
    else:
        found = work.step("plan", partial(_planned, planner, asked))
        attempt = work.closed_form(found.plan)
        attempt = work.improved(attempt, USUAL_DROP if max_drop is None else max_drop)
    folded = work.step("fold", lambda: work.folded(attempt))
    size = resolve_input(model).input_size
    cost = count(folded, size), count(model, size)
    times = work.step(
        "bench",
        lambda: bench(
            *(folded, model),
            batch_sizes=(serving.batch_size,),
            num_pairs=20,
            max_seconds=work.reserved,
            device="cpu" if serving.backend in RUNTIMES else device,
            backend=serving.backend,
            dtype=None if serving.dtype is None else getattr(torch, serving.dtype),
            seed=seed,
            macs=(cost[0].macs, cost[1].macs),
            progress=progress,
        ),
    )
    changed = MostChanged(bool(num_classes(model)))
    verdict = work.step("judge", lambda: judge.report(folded, changed))
    if clock() - began > 60 * asked.time * (1 + OVERRUN):
        logger.warning(
            "the job took %.1f minutes, `minutes=%g` were given: a plan, its closed form, folding and timing are "
            "always done",
            *((clock() - began) / 60, asked.time),
        )
    budget = budget_json(found)
    analysis = work.step("look inside", lambda: _inside(work, folded, budget))
    result = _result(folded, asked, verdict, times, cost, tuple(work.steps))
    config = getattr(evaluation, "config", None) or getattr(batches, "config", None) or resolve_input(model)
    seen = changed.to_page(config, names_to_show(model, evaluation))
    return replace(result, budget=budget, analysis=analysis, changed=seen, serving=serving)


def _planned(planner: Planner, asked: CompactionOptions) -> BudgetPlan:
    """The plan for the size that was asked for; a refusal names what was asked for."""
    assert asked.size is not None
    unit, target = asked.size
    try:
        return planner.plan(unit, target)
    except OutOfReach as error:
        wanted, end = f"`{unit}={target:g}`", f"about {error.least:.2f} is the least"
        if asked.speedup is not None:
            wanted = f"`speedup={asked.speedup:g}`"
            end = f"about {1 / max(error.least, 1e-9):.2f} times as fast is the most"
        raise OutOfReach(f"{wanted} is out of reach with these operators: {end}", error.least) from error


def _inside(work: Work, folded: nn.Module, budget: dict[str, Any]) -> AnalysisReport:
    """What pages show of the layers: likeness of heads, spectra, maps, merged tokens."""
    few = first_images(work.images, LOOKED_AT)
    plan = getattr(folded, "vitcompact_plan")  # noqa: B009 - timm's modules know tensors and modules only
    return analyze_plan(
        work.original, few, plan, compacted=folded, budget=budget, device=work.device, progress=work.progress
    )


def _smallest(planner: Planner, work: Work, max_drop: float) -> tuple[BudgetPlan, Attempt]:
    """The smallest of a few sizes that holds it, by bisection while there is time; else the nearest one, trained."""
    low, high, least = 0, len(LADDER) - 1, 0.0
    best: tuple[BudgetPlan, Attempt] | None = None
    tried: list[tuple[BudgetPlan, Attempt]] = []
    while low <= high and (not tried or work.left > least):
        middle = (low + high) // 2
        share = LADDER[middle]
        try:
            found = work.step(f"plan {share:g} of the MACs", partial(planner.plan, "macs", share))
        except UsageError:
            if middle == 0:
                raise
            high = middle - 1
            continue
        attempt = work.closed_form(found.plan)
        tried.append((found, attempt))
        if attempt.drop <= max_drop:
            best, low = tried[-1], middle + 1
        else:
            high = middle - 1
        least = attempt.seconds + work.judge.seconds  # the layers are measured once
    if best is not None:
        return best
    found, attempt = min(tried, key=lambda each: each[1].drop)
    return found, work.improved(attempt, max_drop)


def _result(
    folded: nn.Module,
    asked: CompactionOptions,
    verdict: Verdict,
    times: BenchResult,
    cost: tuple[Cost, Cost],
    steps: tuple[Step, ...],
) -> CompactResult:
    top = times.headline
    whole = None if verdict.agreement is None else 1.0
    before = Measures(verdict.original_top1, whole, 1.0, top.baseline.latency_ms.p50, cost[1].macs, cost[1].params)
    after = Measures(
        verdict.top1, verdict.agreement, verdict.cosine, top.model.latency_ms.p50, cost[0].macs, cost[0].params
    )
    named = {name: getattr(asked, name) for name in ("speedup", "macs", "params", "max_drop")}
    wanted = {name: float(value) for name, value in named.items() if value is not None}
    if asked.size is not None and not wanted.keys() - {"max_drop"}:
        wanted["macs"] = asked.size[1]
    missed = {}
    if "max_drop" in wanted and verdict.drop > wanted["max_drop"]:
        between = verdict.drop_interval
        sure = "" if between is None else f" (95 % interval {between[0]:.2f} to {between[1]:.2f})"
        missed["max_drop"] = f"{verdict.drop:.2f} points were lost{sure}, {wanted['max_drop']:g} were allowed"
    if (
        "speedup" in wanted
        and times.speedup < wanted["speedup"] * (1 - SLACK)
        and (top.speedup_interval[1] < wanted["speedup"])
    ):
        missed["speedup"] = f"{times.speedup:.2f} times as fast, {wanted['speedup']:g} was asked for"
    for name, told in missed.items():
        kept = sorted(wanted.keys() - missed.keys())
        logger.warning("`%s` was given up%s: %s", name, f" for `{kept[0]}`" if kept else "", told)
    plan = getattr(folded, "vitcompact_plan")  # noqa: B009 - timm's modules know tensors and modules only
    return CompactResult(
        folded,
        before,
        after,
        times.speedup,
        top.speedup_interval,
        verdict.drop,
        verdict.drop_interval,
        verdict.num_samples,
        wanted,
        missed,
        steps,
        plan,
    )
