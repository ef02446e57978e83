"""Sharded models train as whole ones do: the same steps, scores and states, and one process can go on from theirs."""

from __future__ import annotations

import json
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


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("sharded")
    found = ended(started(sharded_script.main, root, folder=root))
    assert [each.code for each in found] == [0, 0], "\n".join(each.err for each in found)
    return root, json.loads((root / "said-0.json").read_text())


@pytest.mark.broad
@pytest.mark.parametrize("name", sharded_script.CASES)
def test_of_every_kind(name: str, everything: tuple[Path, dict[str, Any]]) -> None:
    root, said = everything
    compare(root, name, said)


@pytest.mark.broad
@pytest.mark.parametrize("name", SHARDABLE)
def test_optimizers(name: str, everything: tuple[Path, dict[str, Any]]) -> None:
    assert everything[1]["optimizers"][name] < 1e-3


@pytest.mark.broad
def test_a_state_is_of_whole_models(everything: tuple[Path, dict[str, Any]]) -> None:
    """A run that was stopped goes on sharded or whole, in two processes or in one."""
    root, said = everything
    assert said["interrupted"].startswith("interrupted after step 2 of 3; `resume='auto'` continues from")
    wanted = run(**sharded_script.SHORT).model.state_dict()
    assert said["evaluating"].startswith("interrupted while evaluating; ")
    for name in ("resumed", "in-parts"):
        assert distances(wanted, load_file(root / f"{name}-0.safetensors"))[0] < 2e-6
    more: dict[str, Any] = {"state_dir": root / "parts", "resume": "auto", **sharded_script.SHORT}
    assert distances(wanted, run(**more).model.state_dict())[0] < 2e-6


@pytest.mark.broad
def test_what_goes_with_it(everything: tuple[Path, dict[str, Any]]) -> None:
    said = everything[1]
    assert said["cache"].startswith("`cache_teacher` and `fsdp` do not go together")
    assert said["opt"].startswith("`fsdp` is known to work with these optimizers (`opt`) only: adam, ")
    assert options(fsdp=True).opt in SHARDABLE


@pytest.mark.sweep
def test_every_family(tmp_path: Path) -> None:
    found = ended(started(sharded_script.families, tmp_path, folder=tmp_path), timeout=1200)
    assert [each.code for each in found] == [0, 0], "\n".join(each.err for each in found)
    measured = json.loads((tmp_path / "families.json").read_text())
    wrong = {name: value for name, value in measured.items() if not isinstance(value, float) or value > 1e-3}
    assert not wrong, "\n".join(f"{name}: {value}" for name, value in wrong.items())
