"""What a run leaves behind while it goes on: its last state to resume from, and the best weights so far."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vitcompact.errors import UsageError
from vitcompact.training.schedule import StepPlan
from vitcompact.training.state import (
    BEST_NAME,
    STATE_NAME,
    State,
    load_state,
    pack_optimizer,
    save_state,
    unpack_optimizer,
)
from vitcompact.training.step import Stepper

logger = logging.getLogger("vitcompact")


@dataclass
class Best:
    """The best weights that an evaluation during training has seen."""

    value: float
    step: int
    weights: dict[str, Tensor]


class Keeper:
    """Keeps last and best of one run, in `folder` or, for None, the best in memory only.

    Attributes:
        best: the best weights so far, or None.
        notes: JSON-ready values saved along: scores and times of earlier parts of the run.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any]) -> None:
        self.folder, self._identity = folder, identity
        self.best: Best | None = None
        self.notes: dict[str, Any] = {}

    def clear(self) -> None:
        """Forget an earlier run in the same folder."""
        for name in (STATE_NAME, BEST_NAME) if self.folder else ():
            (self.folder / name).unlink(missing_ok=True)  # type: ignore[operator]

    def offer(self, model: nn.Module, value: float, step: int) -> None:
        """Keep `model`'s weights if `value` beats all before."""
        if self.best is not None and value <= self.best.value:
            return
        weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        self.best = Best(value, step, weights)
        if self.folder:
            self._write(State(dict(weights), {"value": value, "step": step}), BEST_NAME)

    def save(self, stepper: Stepper, plan: StepPlan, seconds: float) -> bool:
        """Write the resumable state; False (and a warning) where the disk refuses.

        A finished run needs no optimizer any more: what it leaves is the weights it ended with.
        """
        if self.folder is None:
            return False
        state = State()
        if plan.finished:
            state.put("student", (stepper.ema.module if stepper.ema else stepper.student).state_dict())
        else:
            state.put("student", stepper.student.state_dict())
            if stepper.ema is not None:
                state.put("ema", stepper.ema.module.state_dict())
            pack_optimizer(stepper.optimizer, state)
        skipped = {"in_a_row": stepper.bad_in_a_row, "all": stepper.bad_steps}
        state.values |= {"identity": self._identity, "plan": asdict(plan), "seconds": seconds}
        state.values |= {"notes": self.notes, "skipped": skipped}
        return self._write(state, STATE_NAME)

    def restore(self, state: State, stepper: Stepper) -> tuple[StepPlan, float]:
        """Bring the run back to `state`; returns its plan and the seconds spent."""
        weights = state.take("student")
        stepper.student.load_state_dict(weights)
        if stepper.ema is not None:
            stepper.ema.module.load_state_dict(state.take("ema") or weights)
        if "optimizer" in state.values:
            unpack_optimizer(stepper.optimizer, state)
        stepper.bad_in_a_row, stepper.bad_steps = state.values["skipped"]["in_a_row"], state.values["skipped"]["all"]
        self.notes = state.values["notes"]
        if self.folder and (self.folder / BEST_NAME).exists():
            best = load_state(self.folder / BEST_NAME)
            self.best = Best(best.values["value"], best.values["step"], best.tensors)
        return StepPlan(**state.values["plan"]), state.values["seconds"]

    def _write(self, state: State, name: str) -> bool:
        assert self.folder is not None
        try:
            save_state(state, self.folder / name)
        except UsageError as error:
            logger.warning("training goes on, but its state could not be saved: %s", error)
            return False
        return True
