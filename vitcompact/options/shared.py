"""What several stages take."""

# ruff: noqa: RUF009  (option() returns a dataclasses.field, which every class gets anew)

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitcompact.options.declare import RUN, option

AmpDType = Literal["bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Seeded:
    """Anything random."""

    seed: int = option(0, "Seed of everything random, including which images are drawn.", panel=RUN, unit="N")


@dataclass(frozen=True, kw_only=True)
class MixedPrecision:
    """Automatic mixed precision; None leaves it to the device."""

    amp: bool | None = option(
        None,
        "Automatic mixed precision.",
        panel=RUN,
        unset="where the device has it natively",
    )
    amp_dtype: AmpDType = option(
        "bfloat16", "Number format of mixed precision; training takes bfloat16 only.", panel=RUN
    )
