"""How a model and its baseline are timed."""

# ruff: noqa: RUF009  (option() returns a dataclasses.field, which every class gets anew)

from __future__ import annotations

from dataclasses import dataclass

from vitcompact.options.declare import MEASUREMENT, RUN, check_limits, option
from vitcompact.options.shared import Backend


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What `bench` takes beside models, device and number formats."""

    batch_sizes: tuple[int, ...] = option(
        (1, 8, 32),
        "Images per batch, one or more sizes.",
        panel=MEASUREMENT,
        unit="N,…",
        spelled=("batch_size",),
        recorded="batch_size",
        short="b",
        items=int,
        least=1,
    )
    num_pairs: int = option(
        30, "Timed runs of each model at each batch size.", panel=MEASUREMENT, unit="N", least=1, rare=True
    )
    warmup: int = option(5, "Untimed runs before the timed ones.", panel=MEASUREMENT, unit="N", least=0, rare=True)
    max_seconds: float = option(
        60.0,
        "Limit in seconds for the timed runs at one batch size.",
        panel=MEASUREMENT,
        unit="SECONDS",
        least=0,
        rare=True,
    )
    channels_last: bool = option(False, "Use the channels-last memory format.", panel=RUN, rare=True)
    torchcompile: bool = option(False, "Run both models through torch.compile.", panel=RUN, rare=True)
    backend: Backend | None = option(
        None,
        "What runs both models; onnxruntime and openvino export them first.",
        panel=RUN,
        unset="torch; for an exported file its own",
    )
    layers: bool = option(
        False, "Time each compacted layer against its original, and flag those that got slower.", panel=MEASUREMENT
    )

    def __post_init__(self) -> None:
        check_limits(self)
