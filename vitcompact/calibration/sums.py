"""Statistics are sums over images: summed up over the processes that share the images, they are those of all images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from vitcompact.utils.processes import Processes

_MOST_DIMS = 4


class Sums(Protocol):
    """Statistics that are summed over images; `Streams.inputs` takes those that a pass fills."""

    def total_over(self, processes: Processes) -> None:
        """From here on those of the images of all processes."""


def summed(tensors: Sequence[Tensor], processes: Processes) -> list[Tensor]:
    """The sums of tensors over processes.

    A process that had none of the images has tensors of another shape than the others, without numbers.
    """
    if not processes.several or not tensors:
        return list(tensors)
    told = [number for tensor in tensors for number in _form(tensor)]
    largest, each = processes.largest(*told), 2 + _MOST_DIMS
    found = []
    for place, tensor in enumerate(tensors):
        on_gpu, dims, *sizes = largest[each * place : each * (place + 1)]
        whole = tensor.clone()
        if dims and not _form(tensor)[1]:
            whole = tensor.new_zeros(sizes[:dims], device="cuda" if on_gpu else tensor.device)
        if dims:
            processes.total(whole)
        found.append(whole)
    return found


def _form(tensor: Tensor) -> list[int]:
    """Where a tensor is, its dimensions and their sizes; zeros for one without numbers."""
    if not tensor.ndim or not tensor.numel():
        return [0] * (2 + _MOST_DIMS)
    return [int(tensor.is_cuda), tensor.ndim, *tensor.shape, *[0] * (_MOST_DIMS - tensor.ndim)]
