"""What the whole job is to reach, and how long it may take."""

# ruff: noqa: RUF009  (option() returns a dataclasses.field, which every class gets anew)

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitcompact.errors import UsageError
from vitcompact.options.declare import TARGET, check_limits, one_of, option
from vitcompact.options.recipes import NAMES, recipe
from vitcompact.options.shared import Latency, MaxDrop, check_latency

Preset = Literal["gentle", "balanced", "small"]
PRESETS: dict[str, float] = {name: recipe(name)["macs"] for name in NAMES}
"""Share of the MACs that the recipe of each preset leaves."""
MINUTES = 15.0
SIZES = ("speedup", "macs", "params", "preset")


@dataclass(frozen=True, kw_only=True)
class CompactionOptions(MaxDrop, Latency):
    """What `compact` takes: one size, or a largest drop, or one of each.

    Attributes:
        max_drop: in percentage points of top-1; without labels, of images answered otherwise; of a model without a
            head, of the cosine of its features.
    """

    speedup: float | None = option(
        None, "How many times as fast the result is to be on this device.", panel=TARGET, unit="FACTOR", above=1
    )
    macs: float | None = option(
        None, "Share of the MACs that is to be left.", panel=TARGET, unit="SHARE", above=0, below=1
    )
    params: float | None = option(
        None, "Share of the parameters that is to be left.", panel=TARGET, unit="SHARE", above=0, below=1
    )
    preset: Preset | None = option(
        None,
        f"A recipe by name: {', '.join(f'{name} leaves {share:g} of the MACs' for name, share in PRESETS.items())}.",
        panel=TARGET,
        unset="balanced, where nothing else is asked for",
    )
    minutes: float | None = option(
        None,
        "Minutes for the whole job, loading included. Blocks are reconstructed, the model is finetuned and further "
        "sizes are tried only where they fit in; a plan, its closed form, folding and timing are always done.",
        panel=TARGET,
        unit="MINUTES",
        unset=f"{MINUTES:g}, or what the preset's recipe says",
        above=0,
    )

    def __post_init__(self) -> None:
        check_limits(self)
        one_of("preset", self.preset, tuple(PRESETS))
        given = [name for name in SIZES if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"give one of `{given[0]}` and `{given[1]}`, not both")
        if self.speedup is None:
            check_latency(self, "speedup", "latency_backend", "latency_dtype")

    @property
    def size(self) -> tuple[Literal["macs", "params", "latency"], float] | None:
        """The unit of the budget and what is to be left of it; None where only the drop is limited."""
        if self.speedup is not None:
            return "latency", 1 / self.speedup
        if self.params is not None:
            return "params", self.params
        if self.macs is not None:
            return "macs", self.macs
        if self.preset is None and self.max_drop is not None:
            return None
        return "macs", PRESETS[self.preset or "balanced"]

    @property
    def time(self) -> float:
        """Minutes, given or those of the preset."""
        if self.minutes is not None:
            return self.minutes
        return MINUTES if self.preset is None else recipe(self.preset).get("minutes", MINUTES)
