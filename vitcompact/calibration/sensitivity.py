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

import torch
from torch import Tensor, nn

from vitcompact.calibration.finite import check_finite
from vitcompact.calibration.token_weights import Sensitivity
from vitcompact.data import ImageBatches, rebatched
from vitcompact.errors import DataError
from vitcompact.models import Site
from vitcompact.models.forward import features, logits, num_classes
from vitcompact.models.layer_scale import along
from vitcompact.options.selection import Keep
from vitcompact.utils.device import device_of
from vitcompact.utils.hooks import hooked
from vitcompact.utils.progress import Progress, silent

MICRO_BATCH = 4
"""Images whose activations are held for a backward pass: what decides the peak memory of a budget."""
TEMPERATURE = 2.0


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
        DataError: activations that are not finite, or an output that no layer has an influence on.
    """
    device = device_of(model)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    energies: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    metric: dict[str, Tensor] = {}
    progress.start("output sensitivity", math.ceil(images.num_samples / MICRO_BATCH))
    for part in rebatched(images, MICRO_BATCH):  # the same directions for an image whatever the batches
        for name, grads in _gradients(model, sites, part.to(device), keep, probes, generator).items():
            energies[name].append(grads.square().sum(-1).mean(0).reshape(len(part), -1))
            rows = grads.flatten(0, -2).double()
            metric[name] = metric.get(name, 0) + rows.T @ rows / probes
        progress.advance()
    progress.finish()
    if metric and not any(float(found.trace()) for found in metric.values()):
        raise DataError(
            "the model's output is the same whatever its layers do, so that none matters more than another: "
            "has its head been trained?"
        )
    return Sensitivity({name: torch.cat(energy) for name, energy in energies.items()}, metric)


def _gradients(
    model: nn.Module, sites: Sequence[Site], images: Tensor, keep: Keep, probes: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Gradients `(probes, images, tokens, channels)` by site, at the site's output after its LayerScale."""
    branches: dict[str, Tensor] = {}

    def recording(site: Site, gamma: Tensor | None) -> Callable[..., Tensor]:
        def hook(_: nn.Module, __: object, output: Tensor) -> Tensor:
            branches[site.name] = output if gamma is None else output * along(gamma, site.channel_dim)
            return branches[site.name]

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
