"""What a user asks for when a global budget decides: how far down, in which unit, by which operators."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from vitcompact.errors import UsageError
from vitcompact.models.forward import num_classes
from vitcompact.operators import OPERATORS
from vitcompact.options.declare import declared
from vitcompact.options.selection import Keep, MergeTokens, Target
from vitcompact.options.shared import AmpDType, Backend, Latency, check_latency
from vitcompact.planning.serving import USUAL, Serving
from vitcompact.utils.processes import ALONE

Unit = Literal["macs", "params", "latency"]


class OutOfReach(UsageError):
    """A target below what the operators can leave.

    Attributes:
        least: the share that is about the least.
    """

    def __init__(self, message: str, least: float) -> None:
        super().__init__(message)
        self.least = least


@dataclass(frozen=True)
class Budget:
    """A global budget.

    Attributes:
        unit: what is to shrink: multiply-accumulates, parameters, or seconds on this machine.
        target: what is to be left of it, in (0, 1).
        ops: operators that may be used, by their names in a plan.
        merge_tokens: pairs of tokens that each block merges, which count towards the target; `auto` for what
            costs least beside the operators, None for none.
        keep: what counts of the features of a model without a head.
        serving: how everything that is timed for a budget of latency is run.
    """

    unit: Unit
    target: float
    ops: tuple[str, ...] = tuple(OPERATORS)
    merge_tokens: MergeTokens | None = None
    keep: Keep = "both"
    serving: Serving = USUAL

    def __post_init__(self) -> None:
        if not (math.isfinite(self.target) and 0 < self.target < 1):
            raise UsageError(f"`target_{self.unit}` must be between 0 and 1 (both exclusive), got {self.target}")
        unknown = [op for op in self.ops if op not in OPERATORS]
        if unknown or not self.ops:
            raise UsageError(
                f"`ops` takes {', '.join(OPERATORS)}; got {unknown[0]!r}" if unknown else "`ops` names none"
            )

    def out_of_reach(self, least: float) -> OutOfReach:
        """The refusal of a target below the `least` share that can be left."""
        wanted = f"`target_{self.unit}={self.target:g}`"
        least = max(least, 0.0)
        return OutOfReach(f"{wanted} is out of reach with these operators: about {least:.2f} is the least", least)


def budget_of(
    target_macs: Target | None,
    target_params: Target | None,
    target_latency: Target | None,
    ops: Iterable[str] | None,
    merge_tokens: MergeTokens | None = None,
    keep: Keep | None = None,
    latency_backend: Backend | None = None,
    latency_batch: int | None = None,
    latency_dtype: AmpDType | None = None,
) -> Budget | None:
    """The budget that one of the three targets asks for, or None where none is given.

    Raises:
        UsageError: more than one target, operators or `auto` without a target, a target out of range, or a
            `latency_...` without a target of latency, or a backend that is not installed.
    """
    if isinstance(merge_tokens, str) and merge_tokens != "auto":
        raise UsageError(f"`merge_tokens` takes 'auto' or numbers, got {merge_tokens!r}")
    targets = dict(zip(get_args(Unit), (target_macs, target_params, target_latency), strict=True))
    given = [unit for unit, target in targets.items() if target is not None]
    if len(given) > 1:
        raise UsageError(f"give one of `target_{given[0]}` and `target_{given[1]}`, not both")
    if target_latency is None:
        asked = Latency(latency_backend=latency_backend, latency_batch=latency_batch, latency_dtype=latency_dtype)
        check_latency(asked, "target_latency", *declared(Latency))
    if not given:
        if ops is not None:
            raise UsageError("`ops` narrows a budget: give `target_macs`, `target_params` or `target_latency` with it")
        if merge_tokens == "auto":
            raise UsageError("`merge_tokens='auto'` shares a budget: give `target_macs` or `target_latency` with it")
        return None
    target = targets[given[0]]
    if not isinstance(target, (int, float)):
        raise UsageError(f"`target_{given[0]}` takes one number here, got {target!r}")
    chosen = tuple(OPERATORS) if ops is None else tuple(ops)
    serving = Serving.of(latency_backend, latency_batch, latency_dtype)
    return Budget(given[0], target, chosen, merge_tokens, keep or "both", serving)


def check_budget(
    budget: Budget | None, ratios: tuple[float | None, float | None], plan: object, images: object
) -> None:
    """Refuse what does not go with a budget: ratios, a plan, no images.

    Raises:
        UsageError: see above.
    """
    if budget is None:
        return
    target = f"`target_{budget.unit}`"
    if any(share is not None for share in ratios):
        raise UsageError(f"{target} decides how much of what: leave out `ratio` and `rank_ratio`")
    if plan is not None:
        raise UsageError(f"`plan` says what is compacted: leave out {target}")
    if images is None:
        raise UsageError(f"{target} needs images to measure what each layer can do without: give `images`")


def check_keep(keep: Keep | None, images: object, model: nn.Module | None = None) -> None:
    """Refuse to choose among features without images to weigh errors on, or where the classes count.

    Args:
        model: what is to be compacted, once it is there.

    Raises:
        UsageError: see above, or no such choice.
    """
    if keep is not None and keep not in get_args(Keep):
        raise UsageError(f"`keep` takes 'cls', 'patches' or 'both', got {keep!r}")
    if keep in (None, "both"):
        return
    if images is None:
        raise UsageError("`keep` says which errors count, and they are measured on images: give `images`")
    if model is not None and num_classes(model):
        raise UsageError(f"`keep='{keep}'` chooses among features, and this model has a head: leave it out")


def check_one_clock(budget: Budget | None, images: object) -> None:
    """Refuse to time layers while other processes work on the same machine.

    Raises:
        UsageError: see above.
    """
    if budget is not None and budget.unit == "latency" and getattr(images, "processes", ALONE).several:
        raise UsageError(
            "`target_latency` times layers, which other processes would disturb: make the plan in one process, and "
            "give it to all as `plan`"
        )
