"""Block-wise reconstruction: a few hundred Adam steps on one converted block so that it answers as the original did.

Inputs come from the converted stream, targets are the original block's outputs, so that earlier errors are taken back
as well. Some images are held out; the weights that do best on them are kept, the closed form's among them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitcompact.calibration.streams import BlockBatch, Streams
from vitcompact.utils.device import computes_bfloat16
from vitcompact.utils.processes import Processes

EVALUATIONS = 6
"""How often held-out images are looked at in one block's run."""
ROWS_A_STEP = 1200
MOST_IMAGES = 32
"""Images a step: as many as have about so many tokens, two at least. In the same time more steps on fewer images get
further (docs/results.md)."""


@dataclass(frozen=True)
class ReconstructOptions:
    """How blocks are reconstructed.

    Attributes:
        steps: Adam steps per block; 0 leaves the closed form as it is.
        lr: largest step, relative to each matrix's root mean square.
        batch_size: images per step; None for as many as have about `ROWS_A_STEP` tokens, at most `MOST_IMAGES`.
        bf16: automatic mixed precision in bfloat16; None is on where the device computes it natively.
    """

    steps: int = 0
    lr: float = 1e-2
    batch_size: int | None = None
    bf16: bool | None = None

    def autocast(self, device: torch.device) -> torch.autocast:
        """The precision of forward passes; weights and errors stay float32."""
        wanted = computes_bfloat16(device) if self.bf16 is None else self.bf16
        return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


NO_STEPS = ReconstructOptions()


@dataclass(frozen=True)
class Reconstruction:
    """Held-out error of a block, relative to what it adds to the residual stream, before and after; steps kept."""

    before: float
    after: float
    steps: int


def reconstruct_block(
    streams: Streams, options: ReconstructOptions, seed: int, channel_dim: int = -1
) -> Reconstruction:
    """Train the current block of the converted stream in place; its parameters are frozen again afterwards.

    Args:
        channel_dim: of the block's input, to know how many tokens an image has.
    """
    images = options.batch_size or images_a_step(streams.example(), channel_dim)
    block = streams.current_block
    parameters = [p for p in block.parameters() if p.is_floating_point()]
    groups = [{"params": [p], "lr": options.lr * _size(p)} for p in parameters]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    start_rates = [group["lr"] for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(seed)
    best = before = _held_out_error(streams, block, options)
    kept, best_step = _snapshot(parameters), 0
    every = max(1, math.ceil(options.steps / EVALUATIONS))
    for step in range(options.steps):
        for group, rate in zip(optimizer.param_groups, start_rates, strict=True):
            group["lr"] = rate * _schedule(step, options.steps)
        with torch.enable_grad():
            for parameter in parameters:
                parameter.requires_grad_(True)
            batch, together = streams.training_batch(images, generator)
            optimizer.zero_grad()
            if batch is not None:
                share = len(batch.target) / together
                loss = _loss(block, batch, options)
                (loss if share == 1 else loss * share).backward()
            _average(parameters, streams.processes)
        for parameter in parameters:
            parameter.requires_grad_(False)
        optimizer.step()
        if (step + 1) % every == 0 or step + 1 == options.steps:
            error = _held_out_error(streams, block, options)
            if error < best:
                best, kept, best_step = error, _snapshot(parameters), step + 1
    for parameter, value in zip(parameters, kept, strict=True):
        parameter.copy_(value)
        parameter.grad = None
    return Reconstruction(before, best, best_step)


def _average(parameters: list[nn.Parameter], processes: Processes) -> None:
    """Gradients of the images of all processes, where they share them."""
    if not processes.several:
        return
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        processes.total(parameter.grad)


def images_a_step(x: Tensor, channel_dim: int = -1) -> int:
    """Images of which each step takes that many, for a block called with `x` (batch first)."""
    rows = x[0].numel() // x.shape[channel_dim]
    return min(MOST_IMAGES, max(2, round(ROWS_A_STEP / rows)))


def _snapshot(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _size(parameter: Tensor) -> float:
    """Root mean square of a matrix; that of one for vectors, which may be all zero."""
    return max(float(parameter.detach().square().mean().sqrt()), 1e-3)


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over a twentieth, then a half cosine."""
    warm = max(1, steps // 20)
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _loss(block: nn.Module, batch: BlockBatch, options: ReconstructOptions) -> Tensor:
    with options.autocast(batch.target.device):
        output = batch.call.run(block)
    assert isinstance(output, Tensor)
    return (output.float() - batch.target).square().mean()


def _held_out_error(streams: Streams, block: nn.Module, options: ReconstructOptions) -> float:
    """Squared error over that of the block's update of the stream (over the output's energy where shapes change)."""
    total = energy = 0.0
    for batch in streams.held_out_batches():
        with torch.no_grad(), options.autocast(batch.target.device):
            output = batch.call.run(block)
        assert isinstance(output, Tensor)
        start = batch.call.x if batch.call.x.shape == batch.target.shape else 0.0
        total += float((output.float() - batch.target).square().sum())
        energy += float((batch.target - start).square().sum())
    total, energy = streams.processes.sums(total, energy)
    return total / max(energy, 1e-300)
