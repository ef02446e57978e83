"""What several stages take."""

# ruff: noqa: RUF009  (option() returns a dataclasses.field, which every class gets anew)

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
class LatencyBackend:
    """Where it counts how long a model takes."""

    latency_backend: Backend | None = option(
        None,
        "What will serve the model, where its time is the target: layers and whole plans are timed there. onnxruntime "
        "and openvino export each first, which takes minutes.",
        panel=TARGET,
        unset="torch",
        rare=True,
    )


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
