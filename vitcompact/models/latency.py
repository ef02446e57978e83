"""Seconds on this machine: of one call, and of a whole model against the original."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn

from vitcompact.utils.copies import copy_of
from vitcompact.utils.device import synchronise
from vitcompact.utils.timing import Reading, rounds

RUNS, WARM_UP = 15, 2
"""Timed rounds of a reading, and rounds before them that do not count."""


@dataclass(frozen=True)
class Call:
    """The arguments that a module is called with; the first is a tensor."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


Stopwatch = Callable[[nn.Module, Call], float]
"""Seconds of one run of a module."""


def wall_clock(module: nn.Module, call: Call) -> float:
    """Seconds of one run, waiting for the device included."""
    start = time.perf_counter()
    module(*call.args, **call.kwargs)
    synchronise(call.args[0].device)
    return time.perf_counter() - start


def relative_latency(
    original: nn.Module, input_size: tuple[int, int, int], batch_size: int, device: str | torch.device = "cpu"
) -> Callable[[nn.Module], Reading]:
    """A function that reads a structure's time relative to the original's, run alternately."""
    baseline = materialised(original, device)
    call = Call((random_images(input_size, batch_size, device),))

    def read(structure: nn.Module) -> Reading:
        runs = [partial(wall_clock, each, call) for each in (baseline, materialised(structure, device))]
        with torch.inference_mode():
            laps = list(islice(rounds(runs), WARM_UP, WARM_UP + RUNS))
        return Reading(tuple(own / max(whole, 1e-12) for whole, own in laps))

    return read


def random_images(input_size: tuple[int, int, int], batch_size: int, device: str | torch.device) -> torch.Tensor:
    """Images `(batch_size, *input_size)` to time with; always the same ones."""
    return torch.randn(batch_size, *input_size, generator=torch.Generator().manual_seed(0)).to(device)


def materialised(model: nn.Module, device: str | torch.device) -> nn.Module:
    """A copy in eval mode with random values where the model has shapes only; values play no part in latency."""
    made = copy_of(model).eval()
    if not any(parameter.is_meta for parameter in made.parameters()):
        return made.to(device)
    made = made.to_empty(device=device)
    with torch.no_grad():
        for tensor in (*made.parameters(), *made.buffers()):
            if tensor.is_floating_point():
                tensor.normal_(std=0.02)
            else:
                tensor.zero_()
    return made
