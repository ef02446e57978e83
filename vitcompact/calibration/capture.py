"""What surgery sees of one block: targets of the original stream, inputs and drift of the converted one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitcompact.calibration.held_out import Parts
from vitcompact.calibration.walker import BlockCall, Output, capture_input, tensors_of
from vitcompact.models import Site
from vitcompact.models.layer_scale import along, output_scale
from vitcompact.utils.hooks import recorded_inputs, recorded_outputs


@dataclass
class BlockTargets:
    """One batch through an original block: its output and, per site, the branch's output and the residual stream."""

    output: Output
    branches: dict[str, Tensor]
    residuals: dict[str, Tensor]


@dataclass
class SiteInput:
    """The arguments with which a module is called in the converted stream, and the residual stream there.

    `parts` says which images of the batch are held out; the leading axis of `x` is a multiple of their number where the
    block cuts windows. `weights (batch, tokens)` says how much an error of the site's output matters at each token;
    None: all alike.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    residual: Tensor | None
    parts: Parts
    weights: Tensor | None = None

    @property
    def x(self) -> Tensor:
        """The first argument."""
        x: Tensor = self.args[0]
        return x


def run_original(call: BlockCall, block: nn.Module, model: nn.Module, sites: list[Site]) -> BlockTargets:
    """Run the original block; branch outputs come with their LayerScale applied."""
    norms, names = [site.norm for site in sites if site.norm is not None], [site.tap for site in sites]
    with recorded_inputs(model, norms) as residuals, recorded_outputs(model, names) as outputs:
        output = call.run(block)
    branches = {site.name: _scaled(outputs[site.tap], model, site) for site in sites}
    return BlockTargets(output, branches, {s.name: residuals[s.norm] for s in sites if s.norm in residuals})


def run_to(
    call: BlockCall, block: nn.Module, model: nn.Module, module: str, norm: str | None, parts: Parts
) -> SiteInput:
    """Run a block of the converted stream as far as the call of `module`."""
    with recorded_inputs(model, [] if norm is None else [norm]) as residuals:
        args, kwargs = capture_input(call, block, model.get_submodule(module))
    return SiteInput(args, kwargs, residuals.get(norm) if norm else None, parts)


def drift_sites(targets: BlockTargets, sites: list[Site]) -> set[str]:
    """Sites whose norm is known, by the numbers, to see the residual stream that their branch is added to.

    That is so where `residual + branch` is what comes next: the block's output, or the stream that a later site sees.
    Post-norm blocks, windowed layouts and parallel branches fail this and go without drift correction.
    """
    known = set()
    streams = [*tensors_of(targets.output), *targets.residuals.values()]
    for site in sites:
        residual, branch = targets.residuals.get(site.name), targets.branches[site.name]
        if residual is None or residual.shape != branch.shape:
            continue
        following = residual + branch
        if not torch.isfinite(following).all():
            continue  # the statistics will say so, and name the layer
        tolerance = 1e-4 * float(following.abs().max())
        if any(s.shape == following.shape and torch.allclose(s, following, atol=tolerance, rtol=0) for s in streams):
            known.add(site.name)
    return known


def _scaled(output: Tensor | tuple[Tensor, Any], model: nn.Module, site: Site) -> Tensor:
    """A layer's output, the first of several, with its LayerScale applied."""
    output = output[0] if isinstance(output, tuple) else output
    gamma = output_scale(model, site.scale)
    return output if gamma is None else output * along(gamma, site.channel_dim).to(output.dtype)
