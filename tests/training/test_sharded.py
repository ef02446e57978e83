"""Sharded models train as whole ones do: the same steps, scores and states, and one process can go on from theirs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.together import ended, started
from tests.training import sharded_script
from tests.training.helpers import options
from tests.training.test_together import distances
from tests.training.together_script import run
from vitcompact.errors import UsageError
from vitcompact.training.share import SHARDABLE


def done(work: Callable[[Path], None], root: Path, timeout: float = 100) -> dict[str, Any]:
    """What the first of two processes has said of some work."""
    found = ended(started(work, root, folder=root), timeout)
    assert [each.code for each in found] == [0, 0], "\n".join(each.err for each in found)
    said: dict[str, Any] = json.loads((root / "said-0.json").read_text())
    return said


def compare(root: Path, name: str, said: dict[str, Any]) -> None:
    """The weights of sharded models and of whole ones, and what was measured of them."""
    kept: dict[str, dict[str, Tensor]] = {
        kind: load_file(root / f"{name}-{kind}.safetensors") for kind in ("False-0", "True-0", "True-1")
    }
    whole, parts, other = kept.values()
    assert distances(whole, parts)[0] < 2e-6
    assert all(torch.equal(parts[key], other[key]) for key in parts)
    assert said[f"{name}-True"] == pytest.approx(said[f"{name}-False"], abs=1e-5)


def test_alone() -> None:
    with pytest.raises(
        UsageError, match="`fsdp` shards a model over the processes that torchrun starts, and there is only"
    ):
        run(fsdp=True)


@pytest.mark.broad
def test_of_every_kind(tmp_path: Path) -> None:
    """One test: its runs share the start of two processes, and workers would each make a fixture anew."""
    said = done(sharded_script.main, tmp_path)
    for name in sharded_script.FEW:
        compare(tmp_path, name, said)
    assert said["cache"].startswith("`cache_teacher` and `fsdp` do not go together")
    assert said["opt"].startswith("`fsdp` is known to work with these optimizers (`opt`) only: adam, ")
    assert said["interrupted"].startswith("interrupted after step 2 of 3; `resume='auto'` continues from")
    assert said["evaluating"].startswith("interrupted while evaluating; ")
    wanted = run(**sharded_script.SHORT).model.state_dict()  # a state is of whole models, whoever goes on from it
    for name in ("resumed", "in-parts"):
        assert distances(wanted, load_file(tmp_path / f"{name}-0.safetensors"))[0] < 2e-6
    more: dict[str, Any] = {"state_dir": tmp_path / "parts", "resume": "auto", **sharded_script.SHORT}
    assert distances(wanted, run(**more).model.state_dict())[0] < 2e-6


@pytest.mark.slow
def test_more_kinds(tmp_path: Path) -> None:
    said = done(sharded_script.rest, tmp_path)
    for name in sharded_script.CASES.keys() - set(sharded_script.FEW):
        compare(tmp_path, name, said)


@pytest.mark.slow
def test_optimizers(tmp_path: Path) -> None:
    said = done(sharded_script.optimizers, tmp_path)
    assert set(said) == set(SHARDABLE)
    assert options(fsdp=True).opt in SHARDABLE
    assert max(said.values()) < 1e-3, said


@pytest.mark.sweep
def test_every_family(tmp_path: Path) -> None:
    measured = done(sharded_script.families, tmp_path, timeout=1200)
    wrong = {name: value for name, value in measured.items() if not isinstance(value, float) or value > 1e-3}
    assert not wrong, "\n".join(f"{name}: {value}" for name, value in wrong.items())
