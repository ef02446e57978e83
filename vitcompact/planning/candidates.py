"""Loss increase curves and costs of every site of a model: what a global budget is spent on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vitcompact.calibration.held_out import whole_groups
from vitcompact.calibration.sensitivity import sensitivity
from vitcompact.calibration.store import ActivationStore
from vitcompact.calibration.streams import Streams
from vitcompact.calibration.walker import BlockWalker
from vitcompact.data import ImageBatches, example_of, first_images, resolve_input
from vitcompact.errors import UsageError
from vitcompact.layers.pointwise import matrix
from vitcompact.models import Anatomy, Site, inspect
from vitcompact.models.cost import Cost
from vitcompact.models.site_cost import SiteCost, site_costs
from vitcompact.operators import OPERATORS, Candidate
from vitcompact.operators.sites import SiteLosses
from vitcompact.options.selection import Keep
from vitcompact.planning.combinations import Choice, combinations, most_saved
from vitcompact.planning.knapsack import Menu, Option
from vitcompact.planning.predicted import Predicted, predict
from vitcompact.planning.request import Budget, Unit
from vitcompact.planning.selection import Selection
from vitcompact.planning.site_time import SiteTimes
from vitcompact.plans.schema import Skipped
from vitcompact.utils.device import device_of
from vitcompact.utils.hooks import recorded_inputs
from vitcompact.utils.progress import Progress, silent

ADDED_UP = 1.5
"""Errors of all layers together do to the output about what each does alone, added up: 0.8 to 2.4 times as much
where it was measured (docs/results.md). Among layers it cancels; against merging, measured as a whole, it counts.
"""
ROWS_PER_UNIT = 8
MIN_IMAGES, MAX_IMAGES = 96, 512
"""Images that a plan is made from: enough rows for every hidden unit, within these bounds."""


@dataclass(frozen=True)
class Losses:
    """Loss increase curves and costs of every site of a model: enough for any budget.

    Attributes:
        candidates: by site and operator.
        costs: by site.
        whole: of the model.
        sites: in forward order.
        times: how long each site takes by its structure; needed for a budget of latency.
        predicted: what losses mean to answers; None where errors were not weighed.
    """

    candidates: dict[str, dict[str, list[Candidate]]]
    costs: dict[str, SiteCost]
    whole: Cost
    sites: tuple[Site, ...]
    skipped: tuple[Skipped, ...]
    times: SiteTimes | None = None
    predicted: Predicted | None = None

    def choices(self) -> dict[Site, tuple[Choice, ...]]:
        """Everything that can be done to each site."""
        return {
            site: combinations(site.kind, self.candidates[site.name], self.costs[site.name].sizes)
            for site in self.sites
        }

    def menus(self, unit: Unit) -> list[Menu]:
        """Everything that can be done to each site, its saving in `unit`; for latency, of what was timed.

        Raises:
            UsageError: latency without `times`.
        """
        menus = []
        for site, choices in self.choices().items():
            savings = [self._saving(site, choice, unit) for choice in choices]
            options = tuple(
                Option(choice.operators, saving, tuple(ADDED_UP * loss for loss in choice.losses))
                for choice, saving in zip(choices, savings, strict=True)
                if saving is not None
            )
            menus.append(Menu(site.name, site.kind, options))
        return menus

    def _saving(self, site: Site, choice: Choice, unit: Unit) -> float | None:
        if unit == "latency":
            if self.times is None:
                raise UsageError("a budget of latency needs the times of the model's layers: measure them first")
            return self.times.saving(site.name, choice.operators)
        return self.costs[site.name].saving(unit, **choice.sizes)


def measure_losses(
    original: nn.Module,
    images: ImageBatches,
    *,
    ops: Iterable[str] = tuple(OPERATORS),
    budget: Budget | None = None,
    selection: Selection | None = None,
    keep: Keep = "both",
    weigh: bool = True,
    cache_bytes: float = 4e9,
    progress: Progress = silent,
) -> Losses:
    """Walk the original once over the images and measure what every size of every site would do.

    Args:
        original: in eval mode and float32; left as it is.
        ops: operators to consider.
        budget: what they are for; refused before anything is measured where even the smallest sizes miss it.
        selection: `only` and `protect` leave layers alone; `branches` is for the factors of FFNs, `size_multiple` for
            all ranks and widths.
        keep: what counts of the features of a model without a head.
        weigh: multiply errors by what they do to the model's output; off, an error counts by its size alone.

    Raises:
        UsageError: `budget` is out of reach.
        DataError: images that give non-finite activations.
    """
    ops, every = tuple(ops), images
    images = planning_images(original, images)
    anatomy = inspect(original)
    selection = selection or Selection()
    sites = _covered(anatomy, selection)
    whole, costs = site_costs(original, sites, resolve_input(original).input_size)
    offered = {site.name: _offered(original, site, ops, selection.size_multiple) for site in sites}
    if budget is not None and budget.unit != "latency":
        most = sum(most_saved(costs[site.name], budget.unit, offered[site.name]) for site in sites)
        least = 1 - most / getattr(whole, budget.unit)
        if budget.target < least:
            raise budget.out_of_reach(least)
    walker = BlockWalker(original, sites, example_of(images, 2).to(device_of(original)))
    unreachable = tuple(Skipped(site.name, reason) for site in sites if (reason := walker.why_not(site)))
    sites = [site for site in sites if walker.why_not(site) is None]
    known = sensitivity(original, sites, images, keep=keep, progress=progress) if weigh else None
    found: dict[str, dict[str, list[Candidate]]] = {}
    by_block = {name: [site for site in sites if site.block == name] for name in walker.blocks}
    last = max((i for i, name in enumerate(walker.blocks) if by_block[name]), default=-1)
    progress.start("measuring layers", last + 1)
    with torch.no_grad(), ActivationStore(cache_bytes) as store:
        streams = Streams(original, original, walker, images, store, known, drift=False)
        for index in range(last + 1):
            here = by_block[walker.blocks[index]]
            streams.enter(index, here)
            for site in here:
                layer = SiteLosses(streams, site, selection.branches)
                found[site.name] = {
                    name: OPERATORS[name].losses(layer, wanted) for name, wanted in offered[site.name].items() if wanted
                }
            streams.leave(here)
            progress.advance()
    progress.finish()
    ordered = tuple(site for name in walker.blocks for site in by_block[name])
    predicted = predict(original, ordered, every, keep=keep) if weigh else None
    return Losses(found, costs, whole, ordered, (*anatomy.skipped, *unreachable), predicted=predicted)


def planning_images(original: nn.Module, images: ImageBatches) -> ImageBatches:
    """The first images, as many as a plan is made from."""
    return first_images(images, whole_groups(_images_needed(original, example_of(images, 1))))


def _offered(model: nn.Module, site: Site, ops: Sequence[str], multiple: int) -> dict[str, list[int]]:
    """Candidate sizes of a site by operator, in the order in which operators are applied."""
    return {
        name: operator.multiples(model, site, multiple)
        for name, operator in OPERATORS.items()
        if name in ops and operator.kind == site.kind
    }


@torch.no_grad()
def _images_needed(model: nn.Module, batch: torch.Tensor) -> int:
    """Images that give every FFN `ROWS_PER_UNIT` tokens for each hidden unit: planning needs no more than that."""
    needed = MIN_IMAGES
    sites = inspect(model).ffn
    with recorded_inputs(model, [site.output for site in sites]) as inputs:
        model(batch[:1].to(device_of(model)))
    for site in sites:
        units = matrix(model.get_submodule(site.output))[0].shape[1]
        x = inputs.get(site.output)
        rows = 1 if x is None else x.numel() // x.shape[site.channel_dim]
        needed = max(needed, math.ceil(ROWS_PER_UNIT * units / max(rows, 1)))
    return min(needed, MAX_IMAGES)


def _covered(anatomy: Anatomy, selection: Selection) -> list[Site]:
    return [site for site in anatomy.sites if selection.covers(site.name, site.kind)]
