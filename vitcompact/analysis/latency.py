"""Seconds on this machine: of single modules, to plan with, and of a whole model against the original."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from vitcompact.analysis.site_cost import Cost, Measure

RUNS = 15
"""Timed runs; the median counts."""


def timed(input_size: tuple[int, int, int], batch_size: int, device: str | torch.device = "cpu") -> Measure:
    """Median seconds of modules inside a forward pass of `batch_size` images, as `Measure`; `""` is the whole model."""

    def measure(model: nn.Module, names: list[str]) -> dict[str, Cost]:
        running = materialised(model, device)
        images = torch.randn(batch_size, *input_size, device=device)
        with torch.inference_mode(), _stopwatches(running, names, torch.device(device)) as times:
            for _ in range(RUNS + 2):
                running(images)
        return {name: {"latency": statistics.median(times[name][2:])} for name in names}

    return measure


def relative_latency(
    original: nn.Module, input_size: tuple[int, int, int], batch_size: int, device: str | torch.device = "cpu"
) -> Callable[[nn.Module], float]:
    """A function that gives a structure's median seconds over the original's, run alternately."""
    baseline = materialised(original, device)
    images = torch.randn(batch_size, *input_size, device=device)

    def ratio(structure: nn.Module) -> float:
        small = materialised(structure, device)
        ratios = []
        with torch.inference_mode():
            for _ in range(RUNS + 2):
                ratios.append(_seconds(small, images) / _seconds(baseline, images))
        return statistics.median(ratios[2:])

    return ratio


def materialised(model: nn.Module, device: str | torch.device) -> nn.Module:
    """A copy in eval mode with random values where the model has shapes only; values play no part in latency."""
    made = copy.deepcopy(model).eval()
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


def _seconds(model: nn.Module, images: torch.Tensor) -> float:
    start = time.perf_counter()
    model(images)
    _wait(images.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _stopwatches(model: nn.Module, names: list[str], device: torch.device) -> Iterator[dict[str, list[float]]]:
    times: dict[str, list[float]] = {name: [] for name in names}
    starts: dict[str, float] = {}

    def begin(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any) -> None:
            _wait(device)
            starts[name] = time.perf_counter()

        return hook

    def end(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, ___: Any) -> None:
            _wait(device)
            times[name].append(time.perf_counter() - starts[name])

        return hook

    modules = [(name, model.get_submodule(name)) for name in names]
    handles = [module.register_forward_pre_hook(begin(name)) for name, module in modules]
    handles += [module.register_forward_hook(end(name)) for name, module in modules]
    try:
        yield times
    finally:
        for handle in handles:
            handle.remove()
