"""Modules that are timed in another runtime than PyTorch: models as they are exported, layers with their calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_flatten, tree_unflatten

from vitcompact.exporting.base import Format, trace
from vitcompact.exporting.conversion import converting, suited
from vitcompact.exporting.hosted import RUNTIMES
from vitcompact.exporting.registry import FORMATS
from vitcompact.models.latency import COMPILED, EAGER, Call, Host
from vitcompact.options.shared import Backend


def host_of(backend: Backend) -> Host:
    """What runs modules in a backend; runtimes other than PyTorch do so on the CPU, in float32."""
    if backend in RUNTIMES:
        return Host(partial(_converted, FORMATS[RUNTIMES[backend]]), converts=True, name=backend)
    return COMPILED if backend == "compile" else EAGER


@torch.inference_mode(False)
@torch.no_grad()
def _converted(form: Format, modules: Sequence[nn.Module], call: Call) -> list[Callable[[], float]]:
    """Modules in the runtime of a format, converted together: what a converter needs once is most of what it needs.

    Raises:
        UsageError: the format cannot express them.
    """
    together = _Together([suited(module, form).eval().float().cpu() for module in modules], call)
    with converting(form):
        runs = form.loaded(together.traced(whole=call.whole), together.tensors)
    return [partial(_seconds, run) for run in runs]


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class _Together(nn.Module):
    """Modules that take the tensors of one call; what else they are called with stays the same."""

    def __init__(self, modules: Sequence[nn.Module], call: Call) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        values, self._spec = tree_flatten((call.args, call.kwargs))
        self._constants = [None if isinstance(value, Tensor) else value for value in values]
        self._places = [place for place, value in enumerate(values) if isinstance(value, Tensor)]
        self.tensors = tuple(values[place].detach().cpu().clone() for place in self._places)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        values = list(self._constants)
        for place, tensor in zip(self._places, tensors, strict=True):
            values[place] = tensor
        args, kwargs = tree_unflatten(values, self._spec)
        return tuple(_one(module(*args, **kwargs)) for module in self.parts)

    def traced(self, *, whole: bool) -> ExportedProgram:
        """The program: of a whole model for any number of images, of layers for the shapes of their call."""
        if whole:
            channels, height, width = self.tensors[0].shape[1:]
            return trace(self.parts[0], (channels, height, width))
        return torch.export.export(self, self.tensors)


def _one(outputs: Any) -> Tensor:
    """The only tensor of a layer's outputs, or all of them in a row."""
    if isinstance(outputs, Tensor):
        return outputs
    return torch.cat([each.flatten() for each in tree_flatten(outputs)[0] if isinstance(each, Tensor)])
