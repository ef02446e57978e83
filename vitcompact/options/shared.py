"""What several stages take."""

# ruff: noqa: RUF009  (option() returns a dataclasses.field, which every class gets anew)

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitcompact.errors import UsageError
from vitcompact.options.declare import RUN, TARGET, option

AmpDType = Literal["bfloat16", "float16"]
Backend = Literal["torch", "compile", "onnxruntime", "openvino"]
"""What runs models that are timed."""
BACKENDS: dict[str, str] = {
    "torch": "PyTorch",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}
"""How texts name it."""
LATENCY_BATCH = 8
"""Images per batch of models that are timed."""
DIST_TIMEOUT = 1800.0


@dataclass(frozen=True, kw_only=True)
class Seeded:
    """Anything random."""

    seed: int = option(
        0, "Seed of everything random, including which images are drawn.", panel=RUN, unit="N", rare=True
    )


@dataclass(frozen=True, kw_only=True)
class MixedPrecision:
    """Automatic mixed precision; None leaves it to the device."""

    amp: bool | None = option(
        None,
        "Automatic mixed precision.",
        panel=RUN,
        unset="where the device has it natively",
        rare=True,
    )
    amp_dtype: AmpDType = option(
        "bfloat16", "Number format of mixed precision; training takes bfloat16 only.", panel=RUN, rare=True
    )


@dataclass(frozen=True, kw_only=True)
class MaxDrop:
    """The loss that is allowed."""

    max_drop: float | None = option(
        None,
        "Percentage points of top-1 that may be lost on labelled evaluation images; given alone, the smallest model "
        "that holds it is looked for. compact: without labels, of images answered otherwise; beside a size, it decides "
        "how much is trained.",
        panel=TARGET,
        unit="POINTS",
        least=0,
        most=100,
    )


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Where it counts how long a model takes, and how it is run there."""

    latency_backend: Backend | None = option(
        None,
        "What will serve the model, where its time is the target: layers and whole plans are timed there. onnxruntime "
        "and openvino export each first, which takes minutes.",
        panel=TARGET,
        unset="torch",
        rare=True,
    )
    latency_batch: int | None = option(
        None,
        "Images per batch where the model will serve, if time is the target: what is slow for one image may not be for "
        "many.",
        panel=TARGET,
        unit="N",
        unset=str(LATENCY_BATCH),
        least=1,
        rare=True,
    )
    latency_dtype: AmpDType | None = option(
        None,
        "Number format in which the model will serve, if time is the target; of PyTorch and torch.compile.",
        panel=TARGET,
        unset="float32",
        rare=True,
    )


def check_latency(options: Latency, target: str, *names: str) -> None:
    """Refuse what says how time is measured where it is not the target.

    Raises:
        UsageError: one of `names` is given, and `target` is not.
    """
    for name in names:
        if getattr(options, name) is not None:
            raise UsageError(f"`{name}` says how time is measured: give `{target}` with it, or leave it out")


@dataclass(frozen=True, kw_only=True)
class Distributed:
    """Several processes, started by torchrun."""

    dist_timeout: float = option(
        DIST_TIMEOUT,
        "Started by torchrun: how long a process waits for the others before all give up.",
        panel=RUN,
        unit="SECONDS",
        above=0,
        most=1e6,
        rare=True,
    )
