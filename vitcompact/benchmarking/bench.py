"""Latency, throughput and peak memory of a model, interleaved with a baseline in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from vitcompact.benchmarking.layers import check_layers, layer_times
from vitcompact.benchmarking.memory import peak_memory
from vitcompact.benchmarking.result import BatchResult, BenchResult
from vitcompact.benchmarking.setup import Setup, attention_backends, chosen_backend, first_line, open_device
from vitcompact.benchmarking.timing import PairedTimes, interleave, take_turns
from vitcompact.data import check_weights, resolve_input
from vitcompact.errors import UsageError, is_out_of_memory
from vitcompact.options.benchmarking import Backend
from vitcompact.utils.progress import Progress, notebooks

NOISY = 1.5

InputSize = int | tuple[int, int] | tuple[int, int, int]


def bench(
    model: nn.Module,
    baseline: nn.Module,
    *,
    batch_sizes: Sequence[int] = (1, 8, 32),
    input_size: InputSize | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    amp_dtype: torch.dtype | None = None,
    num_pairs: int = 30,
    warmup: int = 5,
    max_seconds: float | None = 60.0,
    channels_last: bool = False,
    torchcompile: bool = False,
    backend: Backend | None = None,
    layers: bool = False,
    seed: int = 0,
    macs: tuple[int, int] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = notebooks,
) -> BenchResult:
    """Time `model` and `baseline` alternately on the same random images; both are copied, neither is changed.

    Args:
        model: the model.
        baseline: what it is compared with: the original as timm runs it, with fused attention.
        batch_sizes: measured in ascending order; one that does not fit into memory is left out with a note.
        input_size: side in pixels, (height, width) or (channels, height, width); None is the model's own.
        device: where both run.
        dtype: both are cast to it, weights and images; None keeps the weights' own.
        amp_dtype: automatic mixed precision, which casts the weights anew in every pass; `dtype` does it once.
        num_pairs: timed pairs for each batch size.
        warmup: untimed pairs before them.
        max_seconds: limit for the timed pairs of one batch size, see `interleave`.
        channels_last: images and weights in the channels-last memory format.
        torchcompile: both through `torch.compile`, as `backend="compile"` does.
        backend: what runs both; `onnxruntime` and `openvino` export them first. None is PyTorch, or the runtime of an
            exported file (`open_exported`) where one is given.
        layers: also time each layer that the plan of `model` changed, in PyTorch, at the largest batch size.
        seed: of the images and of the bootstrap.
        macs: multiply-accumulates an image of (model, baseline), for `macs_ratio`.
        clock: seconds; for tests.
        progress: told of each pair.

    Raises:
        UsageError: wrong batch sizes, no such device, an input size that a model refuses, or nothing fits into memory.
    """
    sizes = sorted(set(batch_sizes))
    if not sizes or sizes[0] < 1:
        raise UsageError(f"`batch_sizes` must be positive, got {list(batch_sizes)}")
    check_weights(model)
    check_weights(baseline, "baseline")
    chosen = chosen_backend(backend, torchcompile, model, baseline)
    setup = Setup(open_device(device), dtype, amp_dtype, channels_last, chosen)
    if layers:
        check_layers(model, setup)
    shape = _input_shape(model, input_size)
    notes = _baseline_notes(baseline)
    results: list[BatchResult] = []
    progress.start("bench", len(sizes) * num_pairs)
    pair = _Pair(setup, setup.prepare(model), setup.prepare(baseline), seed)
    for size in sizes:
        try:
            result = pair.measure((size, *shape), num_pairs, warmup, max_seconds, clock, progress)
        except _OutOfMemory:
            notes.append(f"batch size {size} left out: not enough memory")
            continue
        results.append(result)
        notes += _noise_notes(result)
    progress.finish()
    if not results:
        raise UsageError(f"not even batch size {sizes[0]} fits into the memory of {setup.device}: try a smaller one")
    # Only now: a backend may be chosen on the first run.
    backends = setup.describe(pair.model), setup.describe(pair.baseline)
    timed = layer_times(pair.model, pair.baseline, setup, (results[-1].batch_size, *shape), seed) if layers else ()
    return BenchResult(tuple(results), shape, backends[0], backends[1], macs, tuple(notes), timed)


def beside_first(
    models: Sequence[nn.Module],
    *,
    batch_size: int,
    num_rounds: int,
    warmup: int = 5,
    max_seconds: float | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = notebooks,
) -> list[PairedTimes]:
    """Time several models in turns on the same random images, each beside the first one; they are copied.

    All times come from the same rounds, so that those of any two models can be compared.

    Args:
        models: the first says how large images are.
        batch_size: images a batch.
        num_rounds, warmup, max_seconds: see `take_turns`.
        device: where all run; exported files run in their own runtime, and the others with them.
        seed: of the images.

    Raises:
        UsageError: no such device, images that a model refuses, or a batch that does not fit into memory.
    """
    setup = Setup(open_device(device), None, None, False, chosen_backend(None, False, *models))
    shape = (batch_size, *_input_shape(models[0], None))
    prepared = [setup.prepare(model) for model in models]
    progress.start("bench", num_rounds)
    try:
        with _refused(shape, setup.device):
            images = setup.images(shape, seed)
            runs = [setup.runner(model, images) for model in prepared]
            laps = take_turns(
                *(runs, num_rounds, warmup), clock=clock, max_seconds=max_seconds, on_round=progress.advance
            )
    except _OutOfMemory as error:
        raise UsageError(f"{batch_size} images do not fit into the memory of {setup.device}") from error
    progress.finish()
    return [PairedTimes(own, laps[0]) for own in laps]


class _OutOfMemory(Exception):
    pass


@contextmanager
def _refused(shape: tuple[int, ...], device: torch.device) -> Iterator[None]:
    """What running a model on such images can end in becomes `UsageError`, or `_OutOfMemory`."""
    try:
        yield
    except (RuntimeError, MemoryError, AssertionError, ValueError) as error:
        if not is_out_of_memory(error):
            raise UsageError(f"cannot run on images of {_text(shape)}: {first_line(error)}") from error
        if device.type == "cuda":
            torch.cuda.empty_cache()
        raise _OutOfMemory from error


@dataclass(frozen=True)
class _Pair:
    """Both models, ready to run."""

    setup: Setup
    model: nn.Module
    baseline: nn.Module
    seed: int

    def measure(
        self,
        shape: tuple[int, int, int, int],
        num_pairs: int,
        warmup: int,
        max_seconds: float | None,
        clock: Callable[[], float],
        progress: Progress,
    ) -> BatchResult:
        """Times and peak memory at one batch size, `shape` (batch, channels, height, width)."""
        with _refused(shape, self.setup.device):
            images = self.setup.images(shape, self.seed)
            run_model, run_baseline = (self.setup.runner(m, images) for m in (self.model, self.baseline))
            times = interleave(
                run_model,
                run_baseline,
                num_pairs=num_pairs,
                warmup=warmup,
                clock=clock,
                max_seconds=max_seconds,
                on_pair=progress.advance,
            )
            memory = (
                peak_memory(self.model, run_model, self.setup.device),
                peak_memory(self.baseline, run_baseline, self.setup.device),
            )
        return BatchResult.of(shape[0], times, memory, self.seed)


def _baseline_notes(baseline: nn.Module) -> list[str]:
    if attention_backends(baseline)["timm unfused"]:
        return ["the baseline runs unfused attention, which flatters the speed-up"]
    return []


def _input_shape(model: nn.Module, size: InputSize | None) -> tuple[int, int, int]:
    if size is None:
        return resolve_input(model).input_size
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) not in (2, 3) or min(sides) < 1:
        raise UsageError(f"`input_size` must be a side, (height, width) or (channels, height, width), got {size}")
    return (sides[0], sides[1], sides[2]) if len(sides) == 3 else (3, sides[0], sides[1])


def _noise_notes(result: BatchResult) -> list[str]:
    """A 95th percentile far above the median means that something else was using the machine."""
    spread = max(side.latency_ms.p95 / max(side.latency_ms.p50, 1e-9) for side in (result.model, result.baseline))
    if spread <= NOISY:
        return []
    return [
        f"batch size {result.batch_size}: 95th percentile {spread:.1f} times the median; "
        "the machine was busy, so read the interval rather than the speed-up"
    ]


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)
