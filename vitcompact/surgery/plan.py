"""Plan: what `convert` would do to which layer, without the converted model."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vitcompact.data import ImageBatches, open_model
from vitcompact.options.selection import Allocation, Keep, MergeTokens, Only
from vitcompact.options.shared import AmpDType, Backend
from vitcompact.options.surgery import Hallucinate, Init
from vitcompact.planning.curves import Curves
from vitcompact.plans.schema import Plan
from vitcompact.surgery.job import Asked, Limits, method_of, prepare
from vitcompact.surgery.reconstruct import ReconstructOptions
from vitcompact.utils.progress import Progress, notebooks


def plan(
    model: nn.Module,
    *,
    ratio: float | None = None,
    rank_ratio: float | None = None,
    allocation: Allocation | None = None,
    target_macs: float | None = None,
    target_params: float | None = None,
    target_latency: float | None = None,
    latency_backend: Backend | None = None,
    latency_batch: int | None = None,
    latency_dtype: AmpDType | None = None,
    ops: Iterable[str] | None = None,
    merge_tokens: MergeTokens | None = None,
    keep: Keep | None = None,
    images: Tensor | Iterable[Tensor] | ImageBatches | None = None,
    only: Only | None = None,
    protect: Iterable[str] = (),
    size_multiple: int = 8,
    terms: Iterable[str] = ("identity",),
    filter_rank: int = 0,
    branches: int = 0,
    init: Init = "lstsq",
    hallucinate: Hallucinate = "refit",
    reconstruct: int | ReconstructOptions = 0,
    without: Iterable[str] = (),
    batch_size: int = 64,
    cache_gb: float = 4.0,
    curves: Curves | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = notebooks,
) -> Plan:
    """The plan that `convert` follows with the same arguments; `print` shows it as a table, `Plan.save` keeps it.

        plan = vitcompact.plan(model, images=images, target_macs=0.8)
        compact = vitcompact.convert(model, images=images, plan=plan)

    is `convert(model, images=images, target_macs=0.8)`, weights included, where the images and the other arguments are
    the same (a target of latency is measured anew each time and may differ).

    For a target, nothing is converted: the original is measured, and the plan chosen, which takes about as long as a
    conversion. Without a target (the pair, `ratio` and `rank_ratio`), each layer's pairs of heads are chosen by what
    the layers before it have become, so a whole conversion runs inside and its weights are thrown away; without images
    that takes seconds.

    Args:
        model: a timm module; it is untouched. One on the meta device, without weights, has the plan of `ratio` and
            `rank_ratio` in which who is hallucinated from whom means nothing: structure and costs are those of others.
            All arguments are those of `convert`, which explains them.

    Raises:
        NothingToCompactError, UsageError, DataError: as `convert`.
    """
    opened = open_model(model)
    job = prepare(
        *(opened.model, opened.images(images, batch_size), None),
        asked=Asked(
            *(ratio, rank_ratio, target_macs, target_params, target_latency, ops, merge_tokens, allocation, keep),
            *(latency_backend, latency_batch, latency_dtype),
        ),
        limits=Limits(only, protect, terms, filter_rank, branches, size_multiple),
        method=method_of(init, hallucinate, reconstruct, without),
        batch_size=batch_size,
        cache_gb=cache_gb,
        curves=curves,
        device=device,
        progress=progress,
        without_values=True,
    )
    found, _ = job.measured_plan()
    return job.solve(None)[1] if found is None else found
