"""Runs of two processes, each once with whole models and once with sharded ones; for `started`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import nn

import vitcompact
from tests.conformance import every
from tests.training.helpers import make_student, make_teacher, options
from tests.training.together_script import interrupted, judged, run, seen, stream
from vitcompact.errors import UsageError
from vitcompact.operators.merge import install_merging
from vitcompact.training import FinetuneResult, TensorBatches, finetune
from vitcompact.training.share import SHARDABLE
from vitcompact.utils.launch import Place, place_of
from vitcompact.utils.processes import Processes, joined

SHORT: dict[str, Any] = {"steps": 3}


@contextmanager
def precise_muon() -> Iterator[None]:
    """Muon's Newton-Schulz steps in float64.

    In bfloat16, as timm does them, they make a difference in the last bit of a gradient as large as the step itself.
    """
    module = import_module("timm.optim.muon")
    with patch.object(
        module, "zeropower_via_newtonschulz", partial(module.zeropower_via_newtonschulz, dtype=torch.float64)
    ):
        yield


def headless(processes: Processes, fsdp: bool) -> FinetuneResult:
    """A feature extractor, which Muon trains."""
    teacher = make_teacher(num_classes=0)
    images = seen()[0]
    chosen = options(steps=4, fsdp=fsdp, opt="muon")
    evaluation = [(images[:5], torch.full((5,), -1))]
    student = make_student(teacher, 0)
    with precise_muon():
        return finetune(student, teacher, stream(), options=chosen, evaluation=evaluation, processes=processes)


def merging(processes: Processes, fsdp: bool) -> FinetuneResult:
    """Blocks that their trunk does not call as modules."""
    teacher = make_teacher()
    student = make_student(teacher, 0)
    install_merging(student, (3, 3))
    return finetune(student, teacher, stream(), options=options(fsdp=fsdp, steps=3), processes=processes)


def one_batch(processes: Processes, fsdp: bool) -> FinetuneResult:
    """Evaluation images of which one process has none."""
    return run(evaluation=[(seen()[0][:1], seen()[1][:1])], fsdp=fsdp, processes=processes, **SHORT)


CASES: dict[str, Callable[[Processes, bool], FinetuneResult]] = {
    "judged": lambda processes, fsdp: judged(processes=processes, fsdp=fsdp),
    "branches": lambda processes, fsdp: run(1, statistics_batches=2, fsdp=fsdp, processes=processes, **SHORT),
    "parts": lambda processes, fsdp: run(
        batch_size=7, grad_accum=3, labels=True, logit_weight=1.0, fsdp=fsdp, processes=processes, **SHORT
    ),
    "checkpointing": lambda processes, fsdp: run(grad_checkpointing=True, fsdp=fsdp, processes=processes, **SHORT),
    "headless": headless,
    "one_batch": one_batch,
    "merging": merging,
    "astray": lambda processes, fsdp: run(steps=21, lr=0.3, fsdp=fsdp, processes=processes),
}


def optimizers(folder: Path) -> None:
    """The largest difference that sharding makes with each optimizer, relative to what training does."""
    with joined(here(), 60) as processes:
        found = {}
        for name in SHARDABLE:
            more = {"opt": name, "lr": 1e-3, "processes": processes, **SHORT}
            with precise_muon():
                whole, parts = (run(fsdp=fsdp, **more).model.state_dict() for fsdp in (False, True))
            given = make_student(make_teacher(), branches=0).state_dict()
            moved = max(float((whole[key] - given[key]).abs().max()) for key in whole)
            differences = [float((whole[key] - parts[key]).abs().max()) for key in whole if "qkv.bias" not in key]
            found[name] = max(differences) / moved
        write(folder, processes, found)


def here() -> Place:
    """The place of this process, which is one of several."""
    place = place_of(os.environ)
    assert place is not None
    return place


def families(folder: Path) -> None:
    """What sharding changes of the small models of all families, relative to what training does; or what goes wrong."""
    found: dict[str, Any] = {}
    with joined(here(), 60) as processes:
        for case in every.CASES:
            teacher = every.build(case)
            images = torch.randn(16, 3, case.size, case.size, generator=torch.Generator().manual_seed(2))
            student = vitcompact.convert(teacher, images=images, **every.PAIR)
            processes.same(student.state_dict().values())
            given, results = student.state_dict(), []
            try:
                for fsdp in (False, True):
                    # What the loss does not see has no gradients, or sharded zeros: only the latter would decay.
                    chosen = options(steps=2, lr=1e-3, weight_decay=0.0, opt="sgd", fsdp=fsdp)
                    batches = TensorBatches(images[:4], batch_size=4)
                    result = finetune(student, teacher, batches, options=chosen, processes=processes)
                    results.append(result.model.state_dict())
            except Exception as error:  # whatever one does, the others are to be tried
                found[f"{case.id} ({case.name})"] = f"{type(error).__name__}: {error}"[:200]
                continue
            moved, differs = (
                max(float((x.double() - other[name].double()).abs().max()) for name, x in results[0].items())
                for other in (given, results[1])
            )
            found[f"{case.id} ({case.name})"] = differs / max(moved, 1e-30)
        write(folder, processes, found)


FEW = ("judged", "branches", "parts", "headless", "merging")
"""Those that CI runs."""
MEASURED = ("steps", "agreement", "cosine", "top1_before", "top1_after", "best_step", "skipped_steps")


def rest(folder: Path) -> None:
    """Those that CI does not run."""
    with joined(here(), 60) as processes:
        write(folder, processes, compared(folder, processes, CASES.keys() - set(FEW)))


def main(folder: Path) -> None:
    """A few of them, and runs that go on from each other."""
    with joined(here(), 60) as processes:
        said = compared(folder, processes, FEW)
        others(folder, processes, said)
        write(folder, processes, said)


def compared(folder: Path, processes: Processes, names: Iterable[str]) -> dict[str, Any]:
    """What whole and sharded runs say of themselves; their weights are kept."""
    said: dict[str, Any] = {}
    for name in sorted(names):
        for kind in (False, True):
            result = CASES[name](processes, kind)
            keep(folder, processes, f"{name}-{kind}", result.model)
            said[f"{name}-{kind}"] = {each: getattr(result, each) for each in MEASURED}
    return said


def keep(folder: Path, processes: Processes, name: str, model: nn.Module) -> None:
    """Write the weights of one process."""
    weights = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    save_file(weights, folder / f"{name}-{processes.rank}.safetensors")


def write(folder: Path, processes: Processes, said: dict[str, Any]) -> None:
    """Write what one process says."""
    (folder / f"said-{processes.rank}.json").write_text(json.dumps(said))


def others(folder: Path, processes: Processes, said: dict[str, Any]) -> None:
    """Runs that go on from each other, and what is refused."""
    said["interrupted"] = interrupted(folder / "here", 2, processes, fsdp=True, **SHORT)
    more: dict[str, Any] = {"resume": "auto", "processes": processes, **SHORT}
    keep(folder, processes, "resumed", run(state_dir=folder / "here", fsdp=True, **more).model)
    interrupted(folder / "whole", 2, processes, **SHORT)
    keep(folder, processes, "in-parts", run(state_dir=folder / "whole", fsdp=True, **more).model)
    interrupted(folder / "parts", 2, processes, fsdp=True, **SHORT)  # for one process to go on from
    evaluation = list(zip(*(each.split(2) for each in seen()), strict=True))
    said["evaluating"] = interrupted(folder / "judged", 2, processes, fsdp=True, evaluation=evaluation, **SHORT)
    refused: dict[str, dict[str, Any]] = {"cache": {"cache_teacher": True}, "opt": {"opt": "adafactor"}}
    for name, wrong in refused.items():
        try:
            run(fsdp=True, processes=processes, **wrong)
        except UsageError as error:
            said[name] = str(error)
