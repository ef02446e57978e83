"""What a saved run is: its values by their types, and one error for whatever else a state may hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vitcompact.checkpoint.quiet import first_line
from vitcompact.errors import CheckpointError
from vitcompact.training.held_out import Scores
from vitcompact.training.schedule import StepPlan
from vitcompact.training.state import State
from vitcompact.utils.typed import typed


@dataclass
class Best:
    """The best weights that an evaluation during training has seen."""

    value: float
    step: int
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class _Skipped:
    in_a_row: int
    all: int


@dataclass(frozen=True)
class _Optimizer:
    numbers: Mapping[str, Mapping[str, Any]]
    groups: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class SavedRun:
    """The values of a state, each of its type."""

    version: int
    identity: Mapping[str, Any]
    plan: StepPlan
    seconds: float
    notes: Mapping[str, Any]
    skipped: _Skipped
    optimizer: _Optimizer | None = None


def saved_run(state: State) -> SavedRun:
    """The values of a state that `Keeper.save` wrote.

    Raises:
        CheckpointError: they are of other types, or out of range.
    """
    with damage():
        saved = typed(SavedRun, state.values, "the state")
        saved.plan.check()
        if not (saved.seconds >= 0 and 0 <= saved.skipped.in_a_row <= saved.skipped.all <= saved.plan.step):
            raise ValueError("its seconds or skipped steps cannot be")
        typed(_Notes, saved.notes, "the notes")
    return saved


@dataclass(frozen=True)
class _Notes:
    before: Scores | None = None
    evaluation_seconds: float = 0.0
    wandb: str | None = None


@dataclass(frozen=True)
class _BestValues:
    version: int
    value: float
    step: int


def best_of(state: State, like: Mapping[str, Tensor]) -> Best:
    """The best weights that a state holds, which are those of a model with the weights `like`.

    Raises:
        CheckpointError: they are not, or damaged.
    """
    with damage():
        told = typed(_BestValues, state.values, "the best weights")
        if {n: t.shape for n, t in state.tensors.items()} != {n: t.shape for n, t in like.items()}:
            raise ValueError("the best weights are those of another model")
    return Best(told.value, told.step, state.tensors)


@contextmanager
def damage() -> Iterator[None]:
    """Whatever a state that others may have changed makes of the code that takes it, as one error."""
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, AssertionError) as error:
        raise CheckpointError(f"the training state is damaged: {first_line(error)}; delete it to start anew") from error
