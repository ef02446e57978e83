"""Which layers are compacted, by how much, and what a global budget may use."""

# ruff: noqa: RUF009  (option() returns a dataclasses.field, which every class gets anew)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from vitcompact.errors import UsageError
from vitcompact.options.declare import COMPACTION, TARGET, check_limits, option
from vitcompact.options.shared import Latency, MaxDrop

Only = Literal["heads", "ffn"]
Allocation = Literal["uniform", "global"]
"""How the two shares are spread: the same for every layer, or on average, by expected loss."""
MergeTokens = int | Sequence[int] | Literal["auto"]
"""Pairs of tokens that each block merges, one number or one for each block; `auto` leaves it to a budget."""
Keep = Literal["cls", "patches", "both"]
"""What of a feature extractor's output counts: the pooled features (the class token's), the patch tokens, or both."""
Target = float | Sequence[float]
"""What is to be left, a share; on the command line also several, for one model each."""

_HALF = "0.5 where the other ratio is given"


@dataclass(frozen=True, kw_only=True)
class SelectionOptions(Latency):
    """What `convert`, `analyze` and `plan` take; a target excludes the two ratios."""

    target_macs: Target | None = option(
        None,
        "Keep this share of the MACs, and choose the cuts with the smallest expected loss increase. "
        "Needs images. Several shares, such as 0.9,0.8,0.7, give a model each, from one measurement.",
        panel=TARGET,
        unit="SHARE[,…]",
        items=float,
        single=True,
        above=0,
        below=1,
    )
    target_params: Target | None = option(
        None,
        "Likewise: keep this share of the parameters.",
        panel=TARGET,
        unit="SHARE[,…]",
        items=float,
        single=True,
        above=0,
        below=1,
    )
    target_latency: Target | None = option(
        None,
        "Likewise: keep this share of the time that a batch of 8 takes on this device.",
        panel=TARGET,
        unit="SHARE[,…]",
        items=float,
        single=True,
        above=0,
        below=1,
    )
    ratio: float | None = option(
        None,
        "Instead of a budget: share of the attention heads to hallucinate in each layer, between 0 and 1.",
        panel=TARGET,
        unit="SHARE",
        unset=_HALF,
        above=0,
        below=1,
    )
    rank_ratio: float | None = option(
        None,
        "Rank of each FFN's output matrix relative to its number of outputs, between 0 and 1.",
        panel=TARGET,
        unit="SHARE",
        unset=_HALF,
        above=0,
        below=1,
    )
    allocation: Allocation | None = option(
        None,
        "How the two ratios are spread: 'uniform' gives each layer its share, 'global' saves as many MACs in layers "
        "where the expected loss increase is smallest, and needs images.",
        panel=COMPACTION,
        unset="uniform",
        rare=True,
    )
    ops: tuple[str, ...] | None = option(
        None,
        "Operators that a target may use, separated by commas, such as hallucinate,factorize; a wrong name lists them.",
        panel=COMPACTION,
        unit="NAMES",
        unset="all",
        items=str,
        rare=True,
    )
    merge_tokens: MergeTokens | None = option(
        None,
        "Pairs of similar tokens that each block of a plain ViT merges: one number, or one for each block; 0 for none. "
        "With a target, 'auto' chooses how many.",
        panel=COMPACTION,
        unit="auto|N,…",
        items=int,
        words=("auto",),
        least=0,
    )
    keep: Keep | None = option(
        None,
        "What counts of a model without a head: its pooled features (cls), its patch tokens, or both alike.",
        panel=COMPACTION,
        unset="both",
        rare=True,
    )
    size_multiple: int = option(
        8,
        "Ranks and widths are multiples of this, itself a multiple of 8: more than 8 for kernels that want it.",
        panel=COMPACTION,
        unit="N",
        least=8,
        rare=True,
    )
    only: Only | None = option(None, "Compact only the attention heads, or only the FFNs.", panel=COMPACTION, rare=True)
    protect: tuple[str, ...] = option(
        (),
        "Leave these layers or blocks alone, such as 'blocks.0'; may be repeated.",
        panel=COMPACTION,
        unit="GLOB",
        spelled=("exclude", "protect"),
        repeated=True,
    )


@dataclass(frozen=True, kw_only=True)
class LimitOptions(MaxDrop):
    """What may be lost, instead of how much is to be left: the smallest model that holds it is looked for."""

    min_agreement: float | None = option(
        None,
        "Look for the smallest model that gives this share of held-out calibration images the same top-1 class as the "
        "original. No labels needed.",
        panel=TARGET,
        unit="SHARE",
        above=0,
        most=1,
    )
    min_cosine: float | None = option(
        None,
        "Likewise, by the mean cosine of the outputs to the original's; for models without a head too.",
        panel=TARGET,
        unit="COSINE",
        above=0,
        most=1,
    )

    def __post_init__(self) -> None:
        check_limits(self)
        if len(given := self.given) > 1:
            raise UsageError(f"give one of `{given[0]}` and `{given[1]}`, not both")

    @property
    def given(self) -> list[str]:
        """The limits that were given."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]

    @property
    def only_one(self) -> tuple[str, float]:
        """The limit and its value.

        Raises:
            UsageError: none was given.
        """
        if not self.given:
            raise UsageError("say what may be lost: give `max_drop`, `min_agreement` or `min_cosine`")
        return self.given[0], getattr(self, self.given[0])
