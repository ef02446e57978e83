"""Surgery with images: block by block, inputs from the converted stream, targets from the original one."""

from __future__ import annotations

import logging

from torch import nn

from vitcompact.calibration.output_sensitivity import OutputSensitivity
from vitcompact.calibration.store import ActivationStore
from vitcompact.calibration.streams import Streams
from vitcompact.calibration.walker import BlockWalker
from vitcompact.data import ImageBatches, example_of
from vitcompact.planning.selection import Selection
from vitcompact.plans.schema import LayerPlan, Skipped
from vitcompact.surgery.reconstruct import reconstruct_block
from vitcompact.surgery.solve import Draft, Method, Site, solve
from vitcompact.utils.device import device_of
from vitcompact.utils.progress import Progress

logger = logging.getLogger("vitcompact")

ROWS_WANTED = 2
"""Tokens for each unknown of a layer's least squares below which users are warned."""


def convert_calibrated(
    original: nn.Module,
    work: nn.Module,
    images: ImageBatches,
    drafts: dict[str, tuple[Site, Draft]],
    selection: Selection,
    method: Method,
    sensitivity: OutputSensitivity | None,
    cache_bytes: float,
    progress: Progress,
) -> tuple[list[LayerPlan], list[Skipped]]:
    """Give every drafted layer of `work` its structure and solved values, in place.

    Args:
        sensitivity: of the original's layers; None counts all errors alike.

    Returns:
        the layers' plans, and the layers that could not be reached with the reason.
    """
    sites = [site for site, _ in drafts.values()]
    walker = BlockWalker(original, sites, example_of(images, 2).to(device_of(original)))
    reasons = {site.name: reason for site in sites if (reason := walker.why_not(site))}
    by_block: dict[str, list[Site]] = {}
    reached = [site for site in sites if site.name not in reasons]
    for site in reached:
        by_block.setdefault(site.block, []).append(site)
    last = max((i for i, name in enumerate(walker.blocks) if name in by_block), default=-1)
    layers: list[LayerPlan] = []
    scarce: dict[str, float] = {}
    known = None if sensitivity is None else sensitivity.of(reached)
    progress.start("converting", last + 1)
    with ActivationStore(cache_bytes) as store:
        streams = Streams(
            *(original, work, walker, images, store, known), drift=method.propagated_error, weigh_tokens=False
        )
        for index in range(last + 1):
            here = by_block.get(walker.blocks[index], [])
            streams.enter(index, here)
            notes = []
            for site in here:
                solved = solve(streams, site, drafts[site.name][1], selection, method)
                streams.processes.same(work.get_submodule(site.name).state_dict().values())  # whatever their machines
                layers.append(solved.layer)
                if solved.rows_per_unknown < ROWS_WANTED:
                    scarce[site.name] = solved.rows_per_unknown
                notes.append(f"{site.name} {solved.error:.3f}")
            if here and method.reconstruct.steps and streams.returns_one_tensor:
                done = reconstruct_block(streams, method.reconstruct, index, here[-1].channel_dim)
                notes.append(f"reconstructed {done.before:.3f} to {done.after:.3f} at step {done.steps}")
            streams.leave(here)
            progress.advance(note="  ".join(notes))
    progress.finish()
    if scarce:
        name = min(scarce, key=scarce.__getitem__)
        logger.warning(
            "few calibration images for %d layer(s): %s has %.1f tokens for each unknown, %d are better. Their "
            "solutions stay closer to the original's weights; give more images",
            len(scarce), name, scarce[name], ROWS_WANTED,
        )  # fmt: skip
    return layers, [Skipped(name, reason) for name, reason in reasons.items()]
