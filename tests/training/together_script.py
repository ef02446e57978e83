"""Runs of finetune that share one start of several processes; each leaves its weights and what it said of itself."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.training.helpers import SIZE, StopAfter, make_student, make_teacher, options
from vitcompact.errors import Interrupted, UsageError
from vitcompact.training import FinetuneResult, TensorBatches, finetune
from vitcompact.utils.launch import place_of
from vitcompact.utils.processes import ALONE, Processes, joined

STEPS = 30
OTHER = {1: "two", 2: "one"}
"""By number of processes, the folder of the other number."""


def seen() -> tuple[Tensor, Tensor]:
    """24 images, of which a third have no label."""
    images = torch.randn(24, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    return images, torch.tensor([-1, 0, 1, 2, 3, 4] * 3 + [-1] * 4 + [1, 2])


def stream(batch_size: int = 8) -> TensorBatches:
    images, labels = seen()
    return TensorBatches(images, labels, batch_size=batch_size)


def run(branches: int = 0, batch_size: int = 8, processes: Processes = ALONE, **more: Any) -> FinetuneResult:
    teacher = make_teacher()
    given = {name: more.pop(name) for name in ("evaluation", "state_dir", "resume", "progress") if name in more}
    chosen = options(**{"steps": STEPS, "warmup_steps": 5, **more})
    student = make_student(teacher, branches=branches)
    return finetune(student, teacher, stream(batch_size), options=chosen, processes=processes, **given)


def interrupted(folder: Path, after: int, processes: Processes = ALONE, **more: Any) -> str:
    """What a run says that is told to stop after some steps; one process alone is told."""
    if processes.rank == processes.world - 1:
        more = {**more, "progress": StopAfter(after)}
    try:
        run(state_dir=folder, processes=processes, **more)
    except Interrupted as error:
        return str(error)
    raise AssertionError("nobody stopped")


CASES: dict[str, dict[str, Any]] = {
    "plain": {"weight_decay": 0.1},
    "branches": {"branches": 1, "statistics_batches": 2, "steps": 5},
    "parts": {"batch_size": 7, "grad_accum": 3, "labels": True, "smoothing": 0.1, "logit_weight": 1.0, "steps": 4},
}
SHORT: dict[str, Any] = {"steps": 5}


def judged(**more: Any) -> FinetuneResult:
    """A run with evaluations, whose best weights are kept; 24 images in batches of 5."""
    images, labels = seen()
    evaluation = list(zip(images.split(5), labels.split(5), strict=True))
    return run(evaluation=evaluation, eval_every=4, eval_share=1, steps=5, **more)


def main(folder: Path) -> None:
    """All runs of several processes."""
    place = place_of(os.environ)
    assert place is not None
    with joined(place, 60) as processes:
        everything(folder, processes)


def everything(folder: Path, processes: Processes) -> None:
    """Every run, one after the other."""
    said: dict[str, Any] = {}

    def keep(name: str, model: nn.Module) -> None:
        weights = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
        save_file(weights, folder / f"{name}-{processes.rank}.safetensors")

    for name, more in CASES.items():
        keep(name, run(processes=processes, **more).model)
    result = judged(processes=processes)
    said["judged"] = {name: value for name, value in result.to_json().items() if name != "seconds"}
    keep("whole", run(processes=processes, **SHORT).model)
    said["interrupted"] = interrupted(folder / "here", 2, processes, **SHORT)
    keep("resumed", run(state_dir=folder / "here", resume="auto", processes=processes, **SHORT).model)
    said["elsewhere"] = interrupted(folder / "elsewhere", 3, processes, **SHORT)
    if (elsewhere := folder.parent / OTHER[processes.world] / "elsewhere").exists():
        keep("continued", run(state_dir=elsewhere, resume="auto", processes=processes, **SHORT).model)
    said["timed"] = run(steps=None, max_minutes=0.002, processes=processes).steps
    few = seen()[0][: 24 - 8 * processes.rank]
    refused: dict[str, Callable[[], object]] = {
        "few": lambda: run(batch_size=1, processes=processes),
        "parts": lambda: run(batch_size=3, grad_accum=4, processes=processes),
        "branches": lambda: run(branches=1, grad_accum=2, processes=processes),
        "images": lambda: finetune(
            make_student(make_teacher()), make_teacher(), few, options=options(), processes=processes
        ),
    }
    for name, call in refused.items():
        try:
            call()
        except UsageError as error:
            said[name] = str(error)
    (folder / f"said-{processes.rank}.json").write_text(json.dumps(said))
