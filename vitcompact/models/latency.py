"""Seconds on this machine: of one call, and of a whole model against the original; eager or compiled."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, islice
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from vitcompact.utils.copies import copy_of
from vitcompact.utils.device import frozen_copy, synchronise
from vitcompact.utils.timing import Reading, rounds

RUNS, WARM_UP = 15, 2
"""Timed rounds of a reading, and rounds before them that do not count."""


@dataclass(frozen=True)
class Call:
    """The arguments that a module is called with; the first is a tensor.

    Attributes:
        whole: of a whole model, whose only argument are images, any number of them once it is deployed.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    whole: bool = False


@dataclass(frozen=True)
class Host:
    """What runs the modules that are timed.

    Attributes:
        prepare: gives for each of several modules that take the same call a function that runs it once, and says how
            many seconds that took.
        converts: whether preparing takes far longer than running.
        name: as `Backend` has it.
    """

    prepare: Callable[[Sequence[nn.Module], Call], list[Callable[[], float]]]
    converts: bool = False
    name: str = "torch"


def wall_clock(module: nn.Module, call: Call) -> float:
    """Seconds of one run, waiting for the device included."""
    start = time.perf_counter()
    module(*call.args, **call.kwargs)
    synchronise(call.args[0].device)
    return time.perf_counter() - start


def _eager(modules: Sequence[nn.Module], call: Call) -> list[Callable[[], float]]:
    return [partial(wall_clock, module, call) for module in modules]


_places = count()


def _all_compiled(modules: Sequence[nn.Module], call: Call) -> list[Callable[[], float]]:
    return [_compiled(module, call) for module in modules]


def _compiled(module: nn.Module, call: Call) -> Callable[[], float]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return module(*args, **kwargs)

    # torch keeps what it compiled by code object, and gives up after a few structures in one
    run.__code__ = run.__code__.replace(co_name=f"run_{next(_places)}")
    fast: Any = torch.compile(run, dynamic=False)
    with torch.inference_mode():
        fast(*call.args, **call.kwargs)
    return partial(wall_clock, fast, call)


def in_dtype(host: Host, dtype: torch.dtype) -> Host:
    """The same host for modules and floating-point arguments in another number format."""

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def prepare(modules: Sequence[nn.Module], call: Call) -> list[Callable[[], float]]:
        call = replace(call, args=tree_map(cast, call.args), kwargs=tree_map(cast, call.kwargs))
        return host.prepare([copy_of(module).to(dtype) for module in modules], call)

    return replace(host, prepare=prepare)


EAGER, COMPILED = Host(_eager), Host(_all_compiled, converts=True, name="compile")


def relative_latency(
    original: nn.Module,
    input_size: tuple[int, int, int],
    batch_size: int,
    device: str | torch.device = "cpu",
    host: Host | None = None,
) -> Callable[[Sequence[nn.Module]], list[Reading]]:
    """A function that reads the times of structures relative to the original's, all run in turns.

    Args:
        host: what runs them; None is PyTorch as it is.
    """
    host = host or EAGER
    call = Call((random_images(input_size, batch_size, device),), whole=True)
    (baseline,) = host.prepare([materialised(original, device)], call)
    latest: list[tuple[nn.Module, Callable[[], float]]] = []

    def prepared(structure: nn.Module) -> Callable[[], float]:
        known = [run for each, run in latest if host.converts and each is structure]
        return known[0] if known else host.prepare([materialised(structure, device)], call)[0]

    def read(structures: Sequence[nn.Module]) -> list[Reading]:
        latest[:] = [(structure, prepared(structure)) for structure in structures]
        with torch.inference_mode():
            laps = list(islice(rounds([baseline, *(run for _, run in latest)]), WARM_UP, WARM_UP + RUNS))
        whole, *others = zip(*laps, strict=True)
        return [Reading.of(own, whole) for own in others]

    return read


def random_images(input_size: tuple[int, int, int], batch_size: int, device: str | torch.device) -> torch.Tensor:
    """Images `(batch_size, *input_size)` to time with; always the same ones."""
    return torch.randn(batch_size, *input_size, generator=torch.Generator().manual_seed(0)).to(device)


def materialised(model: nn.Module, device: str | torch.device) -> nn.Module:
    """A copy in eval mode with random values where the model has shapes only; values play no part in latency.

    One that has values shares its memory with the model where it can.
    """
    if not any(parameter.is_meta for parameter in model.parameters()):
        return frozen_copy(model, device)
    made = copy_of(model).eval().to_empty(device=device)
    with torch.no_grad():
        for tensor in (*made.parameters(), *made.buffers()):
            if tensor.is_floating_point():
                tensor.normal_(std=0.02)
            else:
                tensor.zero_()
    return made
