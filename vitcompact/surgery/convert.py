"""Convert: a pretrained model in, a compacted one in training form out."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vitcompact.data import ImageBatches, open_model
from vitcompact.operators import MODEL_OPERATORS, OPERATORS
from vitcompact.options.selection import Allocation, Keep, MergeTokens, Only
from vitcompact.options.shared import AmpDType, Backend
from vitcompact.options.surgery import Hallucinate, Init
from vitcompact.planning.curves import Curves
from vitcompact.plans.schema import Plan
from vitcompact.surgery.fidelity import fidelity
from vitcompact.surgery.job import Asked, Limits, method_of, prepare
from vitcompact.surgery.reconstruct import ReconstructOptions
from vitcompact.utils.progress import Progress, notebooks


def convert(
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
    seed: int = 0,
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
    plan: Plan | None = None,
    batch_size: int = 64,
    cache_gb: float = 4.0,
    curves: Curves | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = notebooks,
) -> nn.Module:
    """Compact a timm model by closed-form surgery; returns a new module in training form, `model` is untouched.

    Without a target, half of the heads take their attention map from another head, chosen and refitted by output error
    on the images, and each FFN's output matrix becomes a product of two. With a target, all operators share a global
    budget, spent where it changes the model's output least. Works block by block: inputs come from the converted
    stream, targets from the original one. Memory is the statistics, one batch and one block's activations.

    Args:
        model: made by timm; `torch.compile`, `DataParallel`, DDP and timm's EMA around it are taken off. Where it is
            part of a module of yours, its inputs are those it gets there, and a copy of that module comes back.
        ratio: share of heads to hallucinate, `floor(ratio * heads)` per layer; 0.5 unless there is a target.
        rank_ratio: rank of the FFN output matrix over its outputs, rounded to a multiple of 8; 0.5 likewise.
        allocation: `uniform` (None too) gives every layer its shares; `global` saves as many MACs by the same two
            operators where the expected loss increase is smallest; needs images.
        target_macs, target_params, target_latency: what is to be left of the MACs, of the parameters, or of the time
            that a batch takes on `device`, in (0, 1); one of them, needs images.
        latency_backend: what runs the layers and plans that `target_latency` times: `torch` (None too), `compile`, or
            `onnxruntime` and `openvino` on the CPU, to which each is exported first.
        latency_batch: images per batch there; None is 8.
        latency_dtype: number format there, `bfloat16` or `float16`; None is float32.
        ops: operators that a budget may use; all by default.
        merge_tokens: pairs of similar tokens that each block of a plain ViT merges, one number or one for each
            block; they count towards a target. `auto` merges what costs least beside a budget's operators.
        keep: what counts of a model without a head: `cls` (its pooled features), `patches` or `both`.
        images: normalised calibration images `(n, 3, height, width)` or batches of them, no labels. None converts
            from the weights alone, which loses much accuracy.
        only: `heads` or `ffn` for one of the two.
        protect: glob patterns of module paths to leave alone.
        size_multiple: ranks and widths are multiples of it; a multiple of 8.
        terms: further paths of a hallucinated map, out of `identity`, `mean` and `conv` (a 3x3 filter of every head's
            own values, on plain ViTs only).
        branches: silent branches of each FFN factor (paper, section 3.3); short fine-tuning gains nothing from them.
        init, hallucinate: `svd` and `copy` are the naive methods, kept for comparison.
        reconstruct: Adam steps per block after the closed form, on the same images.
        without: ingredients to leave out, for comparison; out of `INGREDIENTS`.
        plan: replay this plan's structure instead of choosing one; its values are solved anew. Of the same model,
            images and options, `plan=vitcompact.plan(...)` gives the weights that leaving it out gives.
        cache_gb: activations kept in memory in GB (1e9 bytes); more goes to a temporary folder.
        curves: keeps what is measured for targets and `allocation='global'`, so that another target costs seconds.
        device: where to work; the result is where `model` is, and in its precision (solved in float32).
        seed: initial values of the silent branches.

    Raises:
        NothingToCompactError: no layer of this architecture can be compacted.
        UsageError: bad options, or a model that was already converted.
        DataError: images that the model does not take, or that give non-finite activations.
    """
    opened = open_model(model)
    model = opened.model
    job = prepare(
        *(model, opened.images(images, batch_size), plan),
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
    )
    chosen, budget = job.measured_plan() if plan is None else (plan, None)
    work, done = job.solve(chosen)
    for whole in MODEL_OPERATORS:
        whole.install(work, done)
        whole.solve(work, done, job.sensitivity)
    work.vitcompact_plan = done  # type: ignore[assignment]
    work.vitcompact_budget = budget  # type: ignore[assignment]
    work.vitcompact_fidelity = None if job.images is None else fidelity(job.original, work, job.images)  # type: ignore[assignment]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _grow(work, done)
    return opened.put_back(work.to(next(model.parameters())))


def _grow(work: nn.Module, plan: Plan) -> None:
    """Give the solved, folded layers their training form and make every parameter trainable."""
    for layer in plan.layers:
        for spec in layer.operators:
            OPERATORS[spec.op].grow(work.get_submodule(layer.name), spec)
    work.requires_grad_(True)
