"""Convert: a pretrained model in, a compacted one in training form out."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcompact.analysis.similarity import weight_similarity
from vitcompact.data import ImageBatches, from_tensor
from vitcompact.errors import UsageError
from vitcompact.families import AttentionSite, family_named, inspect
from vitcompact.layers.attention import CompactAttention
from vitcompact.layers.factor import FactorizedLinear
from vitcompact.operators.absorb import output_scale, scaled
from vitcompact.operators.factorize import plain_svd
from vitcompact.operators.hallucinate import make_spec
from vitcompact.operators.pairing import shortlist
from vitcompact.operators.replay import build_layer, site_of
from vitcompact.operators.scope import wanted_layers
from vitcompact.plan.schema import FactorizeSpec, HallucinateSpec, LayerPlan, Plan, Skipped
from vitcompact.plan.selection import Only, Selection
from vitcompact.progress import Progress, silent
from vitcompact.surgery.capture import Site
from vitcompact.surgery.solve import Hallucinate, Init, Method, held_out, solve_attention, solve_ffn
from vitcompact.surgery.store import ActivationStore
from vitcompact.surgery.stream import Streams
from vitcompact.surgery.walker import BlockWalker

logger = logging.getLogger("vitcompact")

FEW_IMAGES = 64


@dataclass(frozen=True)
class Fidelity:
    """Likeness of converted and original model on held-out calibration images (`num_samples` of them).

    `agreement` is the share of equal arg max (None without a head), `cosine` the mean cosine of the outputs.
    """

    agreement: float | None
    cosine: float
    num_samples: int


def convert(
    model: nn.Module,
    *,
    ratio: float = 0.5,
    rank_ratio: float = 0.5,
    images: Tensor | Iterable[Tensor] | ImageBatches | None = None,
    seed: int = 0,
    only: Only | None = None,
    protect: Iterable[str] = (),
    terms: Iterable[str] = ("identity",),
    filter_rank: int = 0,
    branches: int = 1,
    init: Init = "lstsq",
    hallucinate: Hallucinate = "refit",
    plan: Plan | None = None,
    batch_size: int = 64,
    cache_gb: float = 4.0,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> nn.Module:
    """Compact a timm model by closed-form surgery; returns a new module in training form, `model` is untouched.

    Half of the heads (by default) take their attention map from another head, chosen and refitted by output error on
    the images; each FFN's output matrix becomes a product of two. Works block by block: inputs come from the converted
    stream, targets from the original one. Memory is the statistics, one batch and one block's activations.

    Args:
        ratio: share of heads to hallucinate, `floor(ratio * heads)` per layer.
        rank_ratio: rank of the FFN output matrix over its outputs, rounded to a multiple of 8.
        images: normalised calibration images `(n, 3, height, width)` or batches of them, no labels. None converts
            from the weights alone, which loses much accuracy.
        only: `heads` or `ffn` for one of the two.
        protect: glob patterns of module paths to leave alone.
        terms: further paths of a hallucinated map, `identity` and `mean`.
        branches: silent branches of each FFN factor for fine-tuning.
        init, hallucinate: `svd` and `copy` are the naive methods, kept for comparison.
        plan: replay this plan's structure instead of choosing one; its values are solved anew.
        cache_gb: activations kept in memory in GB (1e9 bytes); more goes to a temporary folder.
        seed: initial values of the silent branches.

    Raises:
        NothingToCompactError: no layer of this architecture can be compacted.
        UsageError: bad options, or a model that was already converted.
        DataError: images that give non-finite activations.
    """
    selection = Selection(ratio, rank_ratio, only, tuple(protect), tuple(terms), filter_rank, branches)
    _check_method(init, hallucinate)
    before = getattr(model, "vitcompact_plan", None)
    if before is not None and (before.layers or before.merge_tokens):
        raise UsageError("this model is converted already; convert the original checkpoint instead")
    wanted, skipped = _wanted(model, selection, plan)
    original = _frozen_copy(model, device)
    work = copy.deepcopy(original)
    with torch.no_grad():
        method = Method(init, hallucinate)
        if images is None:
            logger.warning("no images were given: converting from the weights alone, which loses much accuracy")
            layers = _from_weights(work, wanted, selection, plan, progress)
        else:
            batches = from_tensor(images, batch_size)
            if batches.num_samples < FEW_IMAGES:
                logger.warning("only %d calibration images; 128 or more are recommended", batches.num_samples)
            layers, unreachable = _calibrated(
                original, work, batches, wanted, selection, plan, method, cache_gb * 1e9, progress
            )
            skipped += unreachable
    done = Plan(tuple(layers), tuple(skipped))
    work.vitcompact_plan = done  # type: ignore[assignment]
    work.vitcompact_fidelity = None if images is None else fidelity(original, work, batches)  # type: ignore[assignment]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _grow(work, done)
    work.to(next(model.parameters()).device)
    return work


def _grow(work: nn.Module, plan: Plan) -> None:
    """Give the solved, folded layers their training form and make every parameter trainable."""
    for layer in plan.layers:
        for module in work.get_submodule(layer.name).modules():
            if isinstance(module, CompactAttention):
                module.grow()
            elif isinstance(module, FactorizedLinear):
                module.grow(next(spec.branches for spec in layer.operators if isinstance(spec, FactorizeSpec)))
    work.requires_grad_(True)


def _check_method(init: str, hallucinate: str) -> None:
    if init not in ("lstsq", "svd"):
        raise UsageError(f"--init takes 'lstsq' or 'svd', got {init!r}")
    if hallucinate not in ("refit", "copy"):
        raise UsageError(f"--hallucinate takes 'refit' or 'copy', got {hallucinate!r}")


def _frozen_copy(model: nn.Module, device: str | torch.device) -> nn.Module:
    original = copy.deepcopy(model).eval().to(device=device, dtype=torch.float32)
    return original.requires_grad_(False)


def _wanted(
    model: nn.Module, selection: Selection, plan: Plan | None
) -> tuple[dict[str, tuple[Site, int]], list[Skipped]]:
    """Sites to compact in forward order with their number of hallucinated heads or rank, and what is left alone."""
    if plan is not None:
        anatomy = inspect(model)
        return {layer.name: (site_of(anatomy, layer), 0) for layer in plan.layers}, list(plan.skipped)
    wanted = wanted_layers(model, selection)
    sites: list[tuple[Site, int]] = [*wanted.attention, *wanted.ffn]
    return {site.name: (site, amount) for site, amount in sites}, list(wanted.skipped)


def _from_weights(
    work: nn.Module,
    wanted: dict[str, tuple[Site, int]],
    selection: Selection,
    plan: Plan | None,
    progress: Progress,
) -> list[LayerPlan]:
    """Copied heads paired by their weights, and plain SVD."""
    layers = []
    progress.start("converting from weights", len(wanted))
    for name, (site, amount) in wanted.items():
        layer = plan.layer(name) if plan is not None else None
        if isinstance(site, AttentionSite):
            if layer is None:
                parts = family_named(site.family).parts(work.get_submodule(name))
                parents = shortlist(1.0 - weight_similarity(parts), amount, 1)[0]
                layer = LayerPlan(name, "attention", (make_spec(parts.num_heads, parents),))
            build_layer(work, site, layer, Plan((layer,), form="folded"))
        else:
            linear = work.get_submodule(site.output)
            assert isinstance(linear, nn.Linear)
            weight, bias = scaled(output_scale(work, site.scale), linear.weight, linear.bias)
            layer = layer or LayerPlan(name, "ffn", (FactorizeSpec(amount, selection.branches),))
            build_layer(work, site, layer, Plan((layer,), form="folded"))
            factor = work.get_submodule(site.output)
            plain_svd(weight, bias, factor.rank).load_into(factor)  # type: ignore[arg-type]
        layers.append(layer)
        progress.advance(note=name)
    progress.finish()
    return layers


def _calibrated(
    original: nn.Module,
    work: nn.Module,
    images: ImageBatches,
    wanted: dict[str, tuple[Site, int]],
    selection: Selection,
    plan: Plan | None,
    method: Method,
    cache_bytes: float,
    progress: Progress,
) -> tuple[list[LayerPlan], list[Skipped]]:
    blocks = dict.fromkeys(site.block for site, _ in wanted.values())
    device = next(original.parameters()).device
    walker = BlockWalker(original, _all_blocks(original, list(blocks)), next(iter(images))[:2].to(device))
    by_block: dict[str, list[Site]] = {}
    for site, _ in wanted.values():
        by_block.setdefault(site.block, []).append(site)
    last = max((i for i, name in enumerate(walker.blocks) if name in by_block), default=-1)
    layers: list[LayerPlan] = []
    progress.start("converting", last + 1)
    with ActivationStore(cache_bytes) as store:
        streams = Streams(original, work, walker, images, store)
        for index in range(last + 1):
            sites = by_block.get(walker.blocks[index], [])
            streams.enter(index, sites)
            notes = []
            for site in sites:
                layer, error = _solve(streams, site, wanted[site.name][1], selection, plan, method)
                layers.append(layer)
                notes.append(f"{site.name} {error:.3f}")
            streams.leave(sites)
            progress.advance(note="  ".join(notes))
    progress.finish()
    lost = [site for site, _ in wanted.values() if site.block in walker.unreachable]
    return layers, [Skipped(site.name, walker.unreachable[site.block]) for site in lost]


def _solve(
    streams: Streams, site: Site, amount: int, selection: Selection, plan: Plan | None, method: Method
) -> tuple[LayerPlan, float]:
    given = plan.layer(site.name) if plan is not None else None
    spec = given.operators[0] if given is not None else None
    if isinstance(site, AttentionSite):
        assert spec is None or isinstance(spec, HallucinateSpec)
        return solve_attention(streams, site, amount, selection, method, spec)
    assert spec is None or isinstance(spec, FactorizeSpec)
    rank, branches = (amount, selection.branches) if spec is None else (spec.rank, spec.branches)
    return solve_ffn(streams, site, rank, branches, method)


def _all_blocks(model: nn.Module, blocks: list[str]) -> list[str]:
    """The blocks with sites plus their siblings in the same container, which activations pass through as well."""
    names = []
    for block in blocks:
        parent, _, _ = block.rpartition(".")
        holder = model.get_submodule(parent)
        siblings = [f"{parent}.{n}" if parent else n for n, m in holder.named_children()]
        names += siblings if isinstance(holder, nn.Sequential | nn.ModuleList) else [block]
    return list(dict.fromkeys(names))


@torch.no_grad()
def fidelity(original: nn.Module, converted: nn.Module, images: ImageBatches) -> Fidelity:
    """Compare the outputs of two models on the held-out images of every batch (all images where none are held out)."""
    equal = cosine = total = 0.0
    device = next(original.parameters()).device
    for batch in images:
        chosen = batch[len(batch) - (held_out(len(batch)) or len(batch)) :].to(device)
        first, second = original(chosen), converted(chosen)
        first, second = first.flatten(1).double(), second.flatten(1).double()
        equal += float((first.argmax(1) == second.argmax(1)).sum())
        cosine += float(F.cosine_similarity(first, second).sum())
        total += len(chosen)
    has_head = int(getattr(original, "num_classes", 0) or 0) > 0
    return Fidelity(equal / total if has_head else None, cosine / total, int(total))
