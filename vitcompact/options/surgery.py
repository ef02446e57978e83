"""How the values of a compacted model are solved."""

# ruff: noqa: RUF009  (option() returns a dataclasses.field, which every class gets anew)

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitcompact.errors import UsageError
from vitcompact.options.declare import SURGERY, check_limits, one_of, option

Init = Literal["lstsq", "svd"]
Hallucinate = Literal["refit", "copy"]
TERMS = ("identity", "mean", "conv")
INGREDIENTS = ("sensitivity", "propagated_error", "shared_maps")
"""What can be switched off in surgery one at a time, to see what it is worth."""
OLDER_NAMES = {"drift": "propagated_error"}
"""What ingredients were called when earlier runs were recorded."""


@dataclass(frozen=True, kw_only=True)
class SurgeryOptions:
    """What `convert` takes beside the selection and the images.

    Attributes:
        terms: `conv` is a 3x3 filter of every head's own values, on plain ViTs only.
        init, hallucinate: `svd` and `copy` are the naive methods, kept for comparison.
        branches: silent until they are trained (paper, section 3.3).
        cache_gb: 1 GB is 1e9 bytes.
    """

    reconstruct: int = option(
        0,
        "Adam steps on each block after it is solved, on the same images; a few hundred are usual.",
        panel=SURGERY,
        unit="STEPS",
        least=0,
    )
    without: tuple[str, ...] = option(
        (),
        f"Leave ingredients out, to see what each is worth: {', '.join(INGREDIENTS)}.",
        panel=SURGERY,
        unit="NAMES",
        spelled=("ablate", "without"),
        items=str,
        rare=True,
    )
    init: Init = option(
        "lstsq",
        "Values of FFN factors: lstsq fits them to the images, svd is the naive method.",
        panel=SURGERY,
        rare=True,
    )
    hallucinate: Hallucinate = option(
        "refit",
        "Values of hallucinated heads: refit solves them anew, copy is the naive method.",
        panel=SURGERY,
        rare=True,
    )
    terms: tuple[str, ...] = option(
        ("identity",),
        f"What a hallucinated map has besides its parent's, separated by commas: {', '.join(TERMS)}, or none.",
        panel=SURGERY,
        unit="NAMES",
        items=str,
        rare=True,
    )
    filter_rank: int = option(
        0,
        "Rank of a 3x3 filter over hallucinated maps, 0 to 3; 0 for none.",
        panel=SURGERY,
        unit="N",
        least=0,
        most=3,
        rare=True,
    )
    branches: int = option(
        0,
        "Trainable branches beside each FFN factor, merged by fold; they gain nothing in short fine-tuning.",
        panel=SURGERY,
        unit="N",
        least=0,
        rare=True,
    )
    cache_gb: float = option(
        4.0,
        "Memory in GB for one block's inputs; beyond it they go to disk.",
        panel=SURGERY,
        unit="GB",
        least=0,
        rare=True,
    )

    def __post_init__(self) -> None:
        check_limits(self)
        one_of("init", self.init, ("lstsq", "svd"))
        one_of("hallucinate", self.hallucinate, ("refit", "copy"))
        _known("without", tuple(OLDER_NAMES.get(name, name) for name in self.without), INGREDIENTS)
        _known("terms", self.terms, TERMS)


def _known(name: str, given: tuple[str, ...], accepted: tuple[str, ...]) -> None:
    if unknown := [item for item in given if item not in accepted]:
        raise UsageError(f"`{name}` takes {', '.join(accepted)}; got {unknown[0]!r}")
