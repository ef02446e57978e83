"""What a run leaves behind, and who may go on from it: last state, best weights, the run's identity."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitcompact.errors import UsageError
from vitcompact.training.aside import OPTIONS_NAME, OURS, REPLACED, forget, holds_unfinished, is_ours, set_aside
from vitcompact.training.optimizer import Stepper
from vitcompact.training.saved import Best, best_of, damage, saved_run
from vitcompact.training.schedule import StepPlan
from vitcompact.training.sharded import load_whole, whole_weights
from vitcompact.training.state import (
    BEST_NAME,
    STATE_NAME,
    State,
    load_state,
    pack_optimizer,
    save_state,
    told_state,
    unpack_optimizer,
)
from vitcompact.training.stream import TrainingStream
from vitcompact.utils.files import claimed, json_text, tidied, write_file
from vitcompact.utils.processes import ALONE, Processes
from vitcompact.utils.reading import user_path

_FREE = (
    *("eval_every", "eval_share", "save_interval", "save_minutes"),
    *("grad_accum", "fsdp", "cache_teacher", "cache_teacher_gb"),
)
"""Options that do not change what is learned; nor does the number of processes."""

_WHAT = {
    "model": "the converted model",
    "teacher": "the original (`teacher`)",
    "images": "the training images, their number, preparation, order or augmentation (`images`, `batch_size`, ...)",
    "device": "`device`",
    "amp": "`amp`",
}

logger = logging.getLogger("vitcompact")


def describe_run(
    model: nn.Module,
    teacher: nn.Module,
    stream: TrainingStream,
    first: tuple[Tensor, Tensor],
    options: Mapping[str, Any],
    device: torch.device,
    amp: bool,
) -> dict[str, Any]:
    """A JSON-ready identity of a run; images are told by their `first` batch, which all their options shape.

    Args:
        options: every option by its name in `TrainOptions`, rates as asked for.
    """
    parts = ("images", "labels") if options["labels"] else ("images",)
    chosen = {name: value for name, value in options.items() if name not in (*_FREE, "amp")}
    return {
        "options": chosen,
        "amp": amp,
        "device": device.type,
        "model": fingerprint(model.state_dict()),
        "teacher": fingerprint(teacher.state_dict()),
        "images": f"{stream.num_samples} {stream.batch_size} {fingerprint(dict(zip(parts, first, strict=False)))}",
    }


def check_same_run(saved: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Compare two identities.

    Raises:
        UsageError: they differ; says in what.
    """
    told, after = saved.get("options"), now["options"]
    before: Mapping[str, Any] = told if isinstance(told, Mapping) else {}
    differing = [
        f"`{name}` was {_shown(before.get(name))} and is {_shown(after[name])}"
        for name in after
        if before.get(name) != after[name]
    ]
    differing += [f"{what} changed" for key, what in _WHAT.items() if saved.get(key) != now[key]]
    if differing:
        raise UsageError(
            f"the training state in {where} belongs to another run: {'; '.join(differing)}. Continue with the same "
            "options, or leave `resume` out to start anew"
        )


def _shown(value: Any) -> str:
    return "not given" if value is None else str(value)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 over names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


class Keeper:
    """Keeps last and best of one run, in `folder` or, for None, the best in memory only.

    Attributes:
        best: the best weights so far, or None.
        notes: JSON-ready values saved along: scores and times of earlier parts of the run.

    Of several processes the first has the folder; the others keep the best in memory too.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any], processes: Processes = ALONE) -> None:
        self.folder, self._identity, self._processes = folder, identity, processes
        self.best: Best | None = None
        self.notes: dict[str, Any] = {}

    def begin_anew(self) -> None:
        """Make room in the folder: what a run left that did not end goes to `EARLIER`, from where it can be resumed.

        What a run left that ended waits in `REPLACED` until this one ends too.

        Raises:
            UsageError: the disk refuses, or somebody's own files are where the state goes.
        """
        if self.folder is not None:
            set_aside(self.folder)

    def note_options(self, asked: Mapping[str, Any] | None) -> None:
        """Write down what the run was asked for, now that nothing of an earlier one is in the folder.

        Raises:
            UsageError: the disk refuses.
        """
        if self.folder is not None and asked is not None:
            write_file(self.folder / OPTIONS_NAME, json_text(dict(asked)))

    def offer(self, model: nn.Module, value: float, step: int) -> None:
        """Keep `model`'s weights if `value` beats all before."""
        if self.best is not None and value <= self.best.value:
            return
        self.best = Best(value, step, {name: tensor.clone() for name, tensor in whole_weights(model).items()})
        self._write_best()

    def _write_best(self) -> None:
        if self.folder and self.best:
            values = {"value": self.best.value, "step": self.best.step}
            self._write(State(dict(self.best.weights), values), BEST_NAME)

    def save(self, stepper: Stepper, plan: StepPlan, seconds: float) -> bool:
        """Write the resumable state; False (and a warning) where the disk refuses.

        A finished run needs no optimizer any more: what it leaves is the weights it ended with. Of several processes
        all call it, since weights may lie in parts, and the first writes.
        """
        if self.folder is None and not stepper.sharded:
            return False
        state = State()
        if plan.finished:
            state.put("student", whole_weights(stepper.ema.module if stepper.ema else stepper.student))
        else:
            state.put("student", whole_weights(stepper.student))
            if stepper.ema is not None:
                state.put("ema", whole_weights(stepper.ema.module))
            pack_optimizer(stepper.optimizer, state)
        if self.folder is None:
            return False
        skipped = {"in_a_row": stepper.bad_in_a_row, "all": stepper.bad_steps}
        state.values |= {"identity": self._identity, "plan": asdict(plan), "seconds": seconds}
        state.values |= {"notes": self.notes, "skipped": skipped}
        written = self._write(state, STATE_NAME)
        if written and plan.finished:
            forget(self.folder / REPLACED)
        return written

    def restore(self, state: State, beside: Path | None, stepper: Stepper) -> tuple[StepPlan, float]:
        """Bring the run back to `state`, which lay in the folder `beside`; returns its plan and the seconds spent.

        Only the first of several processes knows that folder, and tells the others what is in it.
        """
        saved = saved_run(state)
        with damage():
            weights = state.take("student")
            load_whole(stepper.student, weights)
            if stepper.ema is not None:
                load_whole(stepper.ema.module, state.take("ema") or weights)
            if saved.optimizer is not None:
                unpack_optimizer(stepper.optimizer, state)
        stepper.bad_in_a_row, stepper.bad_steps = saved.skipped.in_a_row, saved.skipped.all
        self.notes = dict(saved.notes)
        kept = None if beside is None else beside / BEST_NAME
        if self._processes.agreed(lambda: kept is not None and kept.exists()):
            self.best = best_of(told_state(lambda: load_state(_known(kept)), self._processes), weights)
        if self.folder and beside and self.folder.resolve() != beside.resolve():
            set_aside(self.folder)  # another run that ended: see `holding`
            self._write_best()
        return saved.plan, saved.seconds

    def _write(self, state: State, name: str) -> bool:
        assert self.folder is not None
        try:
            save_state(state, self.folder / name)
        except UsageError as error:
            logger.warning("training goes on, but its state could not be saved: %s", error)
            return False
        return True


def _known(path: Path | None) -> Path:
    assert path is not None  # the first process knows it
    return path


def find_state(state_dir: str | Path | None, resume: str | Path | None) -> tuple[Path | None, Path | None]:
    """The folder to keep states in, and the state to go on from."""
    folder = user_path(state_dir) if state_dir is not None else None
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; the training state needs a folder")
    if resume is None:
        return folder, None
    if resume == "auto":
        if folder is None:
            raise UsageError("resume='auto' needs state_dir, the folder of the state")
        found = folder / STATE_NAME
        return folder, found if found.exists() else None
    found = user_path(resume)
    found = found / STATE_NAME if found.is_dir() else found
    if not found.exists():
        raise UsageError(f"no training state at {found}: `resume='auto'` begins anew where there is none")
    return folder or found.parent, found


@contextmanager
def holding(folder: Path | None, saved: Path | None, with_options: bool = False) -> Iterator[None]:
    """Hold the folder of the state for one run, and refuse one in which files of somebody have the names of ours.

    Args:
        with_options: what the run was asked for is written there too.

    Raises:
        UsageError: see above, another run holds it, or a run that did not end left its state there and `saved` is of
            another one.
    """
    names = (*OURS, OPTIONS_NAME) if with_options else OURS
    with claimed(folder / STATE_NAME) if folder is not None else nullcontext():
        if folder is not None:
            tidied(folder)
            if saved is not None and saved.parent.resolve() != folder.resolve() and holds_unfinished(folder):
                raise UsageError(
                    f"{folder} holds the state of another run that did not end, and would lose it: continue that one "
                    "with `resume='auto'`, or move it away"
                )
        for path in () if folder is None else (folder / name for name in names):
            if path.exists() and path != saved and not is_ours(path):
                raise UsageError(
                    f"{path} is no training state of vitcompact, and would be replaced by one: move it away"
                    if path.name in (STATE_NAME, BEST_NAME)
                    else f"{path} was not written by vitcompact, and would be replaced: move it away"
                )
        yield
