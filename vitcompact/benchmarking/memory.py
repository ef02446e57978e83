"""Peak memory of one forward pass, weights included."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from vitcompact.exporting import ExportedModel


def peak_memory(model: nn.Module, run: Callable[[], object], device: torch.device) -> int | None:
    """Bytes of the weights plus the most that one run holds beyond what was allocated before it; None if unknown.

    CUDA: `torch.cuda.max_memory_allocated`. CPU: the running sum of every allocation and release that torch's profiler
    sees in the CPU allocator, kernels' own scratch tensors included; what oneDNN or MKL allocate for themselves is not
    in it. Other devices, and files that another runtime runs: not measured.
    """
    if isinstance(model, ExportedModel):
        return None
    if device.type == "cuda":
        extra: int | None = _cuda_peak(run, device)
    elif device.type == "cpu":
        extra = _cpu_peak(run)
    else:
        extra = None
    return None if extra is None else weight_bytes(model) + extra


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, shared ones once."""
    tensors = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _cuda_peak(run: Callable[[], object], device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return int(torch.cuda.max_memory_allocated(device)) - before


def _cpu_peak(run: Callable[[], object]) -> int | None:
    with _quiet_profiler(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    try:
        events = record.profiler.kineto_results.events()
        changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    except AttributeError:  # not a public interface: another torch may not have it
        return None
    changes.sort(key=lambda change: change[0])
    return max(itertools.accumulate(num_bytes for _, num_bytes in changes), default=0)


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """The profiler's library writes to stderr of its own accord; it reads its log level on first use."""
    name = "KINETO_LOG_LEVEL"
    if name in os.environ:
        yield
        return
    os.environ[name] = "99"
    try:
        yield
    finally:
        del os.environ[name]
