"""How a model will be run where it is deployed: everything that is timed for a budget of latency runs like that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from vitcompact.data import resolve_input
from vitcompact.errors import UsageError
from vitcompact.exporting import RUNTIMES, check_runtime, host_of
from vitcompact.models.latency import Host, in_dtype, random_images, relative_latency
from vitcompact.options.declare import check_type, declared
from vitcompact.options.shared import LATENCY_BATCH, AmpDType, Backend, Latency
from vitcompact.utils.device import device_of
from vitcompact.utils.timing import Reading

TOLERANCE = 0.03
"""How far from the target a time may be, relative to it, and how far readings of it may leave that open."""
MOST_READINGS = 4
"""How often one structure is timed at most; what several readings tell is put together."""


@dataclass(frozen=True)
class Serving:
    """What runs a model, on how many images at a time, in which number format.

    Attributes:
        dtype: of weights and images; None is float32.

    Raises:
        UsageError: what does not exist, is not installed, or does not go together.
    """

    backend: Backend = "torch"
    batch_size: int = LATENCY_BATCH
    dtype: AmpDType | None = None

    def __post_init__(self) -> None:
        for name, value, kind in (("backend", self.backend, Backend), ("dtype", self.dtype, AmpDType)):
            if value is not None and value not in get_args(kind):
                names = ", ".join(repr(each) for each in get_args(kind))
                raise UsageError(f"`latency_{name}` takes {names}, got {value!r}")
        check_type("latency_batch", int, self.batch_size)
        if refusal := declared(Latency)["latency_batch"].refusal(self.batch_size):
            raise UsageError(f"`latency_batch` must be {refusal}, got {self.batch_size}")
        if self.dtype is not None and self.backend in RUNTIMES:
            raise UsageError(f"`latency_backend='{self.backend}'` runs float32 here: leave out `latency_dtype`")
        check_runtime(self.backend)

    @classmethod
    def of(cls, backend: Backend | None, batch_size: int | None, dtype: AmpDType | None) -> Serving:
        """As options have it, of which None is the default."""
        return cls(backend or "torch", LATENCY_BATCH if batch_size is None else batch_size, dtype)

    @property
    def host(self) -> Host:
        """What runs modules."""
        host = host_of(self.backend)
        return host if self.dtype is None else in_dtype(host, getattr(torch, self.dtype))

    def images(self, original: nn.Module) -> Tensor:
        """One batch for a model, on its device, in float32."""
        return random_images(resolve_input(original).input_size, self.batch_size, device_of(original))

    def reader(self, original: nn.Module) -> Callable[[Sequence[nn.Module]], list[Reading]]:
        """What reads structures' times relative to the original's, in the same rounds, on the device of the latter."""
        size, device = resolve_input(original).input_size, device_of(original)
        return relative_latency(original, size, self.batch_size, device, self.host)


USUAL = Serving()
"""Where nothing else is asked for."""
