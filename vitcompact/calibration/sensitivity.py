"""How much an error of each layer's output matters to the model's output: output sensitivity, without labels.

For a random direction `r` of the output, `g = d(r . output) / d(branch output)` is one vector per token. `E g g^T` over
images, tokens and directions says which channels matter, `E |g|^2` which tokens of which images do. For a classifier
the directions have the covariance of the softened softmax (its Fisher information), so what moves the prediction
counts; for a feature extractor they are those of the cosine of pooled features and of patch tokens.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitcompact.calibration.finite import check_finite
from vitcompact.calibration.sums import summed
from vitcompact.calibration.token_weights import Sensitivity
from vitcompact.data import ImageBatches, ImageShare, example_of, placed, processes_of, rebatched
from vitcompact.errors import DataError
from vitcompact.models import Site
from vitcompact.models.forward import features, logits, num_classes
from vitcompact.models.layer_scale import along
from vitcompact.options.selection import Keep
from vitcompact.utils.device import device_of
from vitcompact.utils.hooks import hooked
from vitcompact.utils.processes import Processes
from vitcompact.utils.progress import Progress, silent

MICRO_BATCH = 4
"""Images whose activations are held for a backward pass: what decides the peak memory of a budget."""
TEMPERATURE = 2.0


class NoInfluenceError(DataError):
    """The model's output is the same whatever its layers do."""


def sensitivity(
    model: nn.Module,
    sites: Sequence[Site],
    images: ImageBatches,
    *,
    keep: Keep = "both",
    probes: int = 2,
    seed: int = 0,
    progress: Progress = silent,
) -> Sensitivity:
    """Measure the sensitivity of every site's output (LayerScale applied): a few backward passes over the images.

    Args:
        model: the original, in eval mode; its parameters get no gradient.
        keep: what counts of the features of a model without a head.
        probes: random output directions per image.

    Raises:
        DataError: activations that are not finite.
        NoInfluenceError: an output that no layer has an influence on.
    """
    device = device_of(model)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    processes, position = processes_of(images), 0
    energies: dict[str, list[tuple[int, Tensor]]] = {site.name: [] for site in sites}
    metric: dict[str, Tensor] = {}
    blank = _answered(model, example_of(images, 1).to(device), keep) if processes.several else None
    progress.start("output sensitivity", math.ceil(images.num_samples / MICRO_BATCH))
    for start, part in _in_parts(images):  # the same directions for an image whatever the batches
        _pass_over(blank, probes, generator, range(position, start))
        position = start + len(part)
        for name, grads in _gradients(model, sites, part.to(device), keep, probes, generator).items():
            energies[name].append((start, grads.square().sum(-1).mean(0).reshape(len(part), -1)))
            rows = grads.flatten(0, -2).double()
            metric[name] = metric.get(name, 0) + rows.T @ rows / probes
        progress.advance()
    progress.finish()
    tokens = {site.name: _of_all(energies[site.name], images.num_samples, processes) for site in sites}
    none = torch.zeros((), dtype=torch.float64)
    metric = dict(zip(tokens, summed([metric.get(name, none) for name in tokens], processes), strict=True))
    if metric and not any(float(found.trace()) for found in metric.values()):
        raise NoInfluenceError(
            "the model's output is the same whatever its layers do, so that none matters more than another: "
            "has its head been trained?"
        )
    return Sensitivity(tokens, metric)


def _in_parts(images: ImageBatches) -> Iterator[tuple[int, Tensor]]:
    """The images `MICRO_BATCH` at a time, with the place of the first of each part among all."""
    if not isinstance(images, ImageShare):
        yield from ((place * MICRO_BATCH, part) for place, part in enumerate(rebatched(images, MICRO_BATCH)))
        return
    for start, batch in placed(images):
        yield from ((start + i, batch[i : i + MICRO_BATCH]) for i in range(0, len(batch), MICRO_BATCH))


@torch.no_grad()
def _answered(model: nn.Module, image: Tensor, keep: Keep) -> Answer:
    return answer(model, image, keep)


def _pass_over(blank: Answer | None, probes: int, generator: torch.Generator, places: range) -> None:
    """Draw the directions of images that other processes have, so that those of the next are as in one process.

    Args:
        blank: the answer to any one image.
    """
    for start in range(places.start, places.stop, MICRO_BATCH):
        count = min(MICRO_BATCH, places.stop - start)
        for _ in range(probes):
            _probe(_repeated(blank, count), generator)


def _repeated(blank: Answer | None, count: int) -> Answer:
    assert blank is not None  # images of others are there of several processes only
    if isinstance(blank, Tensor):
        return blank.expand(count, *blank.shape[1:])
    pooled, patches = (None if part is None else part.expand(count, *part.shape[1:]) for part in blank)
    return pooled, patches


def _of_all(found: Sequence[tuple[int, Tensor]], count: int, processes: Processes) -> Tensor:
    """What was measured of each image, `(images, ...)`, of those of all processes."""
    if not processes.several:
        return torch.cat([values for _, values in found])
    own = torch.zeros(count, found[0][1].shape[1], device=found[0][1].device) if found else torch.empty(0)
    for start, values in found:
        own[start : start + len(values)] = values
    return summed([own], processes)[0]


def _gradients(
    model: nn.Module, sites: Sequence[Site], images: Tensor, keep: Keep, probes: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Gradients `(probes, images, tokens, channels)` by site, at the site's output after its LayerScale."""
    branches: dict[str, Tensor] = {}

    def recording(site: Site, gamma: Tensor | None) -> Callable[..., Any]:
        def hook(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
            branch = output[0] if isinstance(output, tuple) else output  # torch.nn.MultiheadAttention's, and its maps
            branches[site.name] = branch if gamma is None else branch * along(gamma, site.channel_dim)
            return (branches[site.name], *output[1:]) if isinstance(output, tuple) else branches[site.name]

        return hook

    with contextlib.ExitStack() as stack, torch.enable_grad():
        for site in sites:
            gamma = stack.enter_context(_bare_scale(model, site))
            module = site.tap if gamma is not None or site.scale is None else site.scale
            stack.enter_context(hooked(model, {module: recording(site, gamma)}))
        found = answer(model, images.requires_grad_(True), keep)
        tensors = [branches[site.name] for site in sites]
        for name, branch in branches.items():  # in forward order: the first one is to blame
            check_finite(name, branch)
        losses = [_probe(found, generator) for _ in range(probes)]
        grads = [torch.autograd.grad(loss, tensors, retain_graph=i + 1 < probes) for i, loss in enumerate(losses)]
    return {
        site.name: torch.stack([g[i].movedim(site.channel_dim, -1) for g in grads]).float()
        for i, site in enumerate(sites)
    }


@contextlib.contextmanager
def _bare_scale(model: nn.Module, site: Site) -> Iterator[Tensor | None]:
    """The LayerScale of a block that multiplies with a bare parameter, which is one meanwhile; else None."""
    holder, _, name = (site.scale or "").rpartition(".")
    found = getattr(model.get_submodule(holder), name) if site.scale else None
    if not isinstance(found, nn.Parameter):
        yield None
        return
    values = found.detach().clone()
    found.data = torch.ones_like(values)
    try:
        yield values
    finally:
        found.data = values


Answer = Tensor | tuple[Tensor | None, Tensor | None]
"""Logits, or pooled features and patch tokens, None for those that do not count."""


def answer(model: nn.Module, images: Tensor, keep: Keep = "both") -> Answer:
    """What a change of the model's output is measured in; of features, those that count.

    Pooled features do where there are no patch tokens.
    """
    if num_classes(model):
        return logits(model, images)
    pooled, patches = features(model, images)
    if keep == "patches" and patches is not None:
        return None, patches
    return pooled, None if keep == "cls" else patches


def change(before: Answer, after: Answer) -> Tensor:
    """Squared change of the output of each image `(batch,)`, by the metric of the directions above."""
    if isinstance(before, Tensor):
        assert isinstance(after, Tensor)
        moved = after - before
        if before.shape[-1] == 1:  # the softmax of one output never changes
            return moved.square().squeeze(-1)
        chance = (before / TEMPERATURE).softmax(-1)
        return (chance * (moved - (chance * moved).sum(-1, keepdim=True)).square()).sum(-1)
    moves = [
        (torch.nn.functional.normalize(new, dim=-1) - torch.nn.functional.normalize(old, dim=-1)).square().sum(-1)
        for old, new in zip(before, after, strict=True)
        if old is not None and new is not None
    ]
    return torch.stack([each.view(len(each), -1).mean(-1) for each in moves]).sum(0)


def _probe(found: Answer, generator: torch.Generator) -> Tensor:
    """A scalar whose gradient at the output is a random direction of its metric."""
    if isinstance(found, Tensor) and found.shape[-1] == 1:
        return (found * _random_signs(found.shape, generator).to(found)).sum()
    if isinstance(found, Tensor):
        chance = (found.detach() / TEMPERATURE).softmax(-1)
        signs = _random_signs(chance.shape, generator).to(chance)
        weighted = signs * chance.sqrt()
        return (found * (weighted - chance * weighted.sum(-1, keepdim=True))).sum()
    probes = [_cosine_probe(vectors, generator) for vectors in found if vectors is not None]
    return torch.stack(probes).sum()


def _cosine_probe(vectors: Tensor, generator: torch.Generator) -> Tensor:
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    count = unit.shape[1] if unit.dim() == 3 else 1
    signs = _random_signs(unit.shape, generator).to(unit)
    return (unit * signs).sum() * count**-0.5


def _random_signs(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator) * 2.0 - 1.0
