"""Two processes train as one does: the same batches, order and schedule, whoever has which images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.together import ended, started
from tests.training import together_script
from vitcompact.training.course import COURSE
from vitcompact.training.state import STATE_NAME
from vitcompact.utils.processes import ALONE


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the runs of one process and of two, which go on from some of the first's."""
    root = tmp_path_factory.mktemp("together")
    folders = {name: root / name for name in ("one", "two")}
    for folder in folders.values():
        folder.mkdir()
    together_script.everything(folders["one"], ALONE)
    found = ended(started(together_script.main, folders["two"], folder=root))
    assert [each.code for each in found] == [0, 0], "\n".join(each.err for each in found)
    return folders


def weights(folder: Path, name: str, rank: int = 0) -> dict[str, Tensor]:
    return load_file(folder / f"{name}-{rank}.safetensors")


def said(folder: Path, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"said-{rank}.json").read_text())
    return found


def distances(first: dict[str, Tensor], second: dict[str, Tensor]) -> tuple[float, float]:
    """The largest difference of all weights but the keys' biases, and of those.

    A softmax ignores what is equal for all keys: gradients of their biases are zero but for rounding, which Adam takes
    for a direction.
    """
    assert first.keys() == second.keys()
    largest = keys = 0.0
    for name, tensor in first.items():
        change = (tensor.double() - second[name].double()).abs()
        if name.endswith("qkv.bias"):
            query, key, value = change.chunk(3)
            keys, change = max(keys, float(key.max())), torch.cat((query, value))
        largest = max(largest, float(change.max()))
    return largest, keys


@pytest.mark.parametrize("name", [*together_script.CASES, "whole"])
def test_two_processes_equal_one(name: str, runs: dict[str, Path]) -> None:
    one, two = weights(runs["one"], name), weights(runs["two"], name)
    largest, keys = distances(one, two)
    assert largest < 1e-5  # gradients that are zero but for rounding move by whole steps of Adam; processors differ
    assert keys < 1e-4
    other = weights(runs["two"], name, 1)
    assert all(torch.equal(two[key], other[key]) for key in two)


def test_parts_equal_a_whole_batch(runs: dict[str, Path]) -> None:
    more = {key: value for key, value in together_script.CASES["parts"].items() if key != "grad_accum"}
    whole = together_script.run(**more).model.state_dict()
    assert distances(whole, weights(runs["one"], "parts"))[0] < 1e-6


def test_images_are_counted_once_when_judged(runs: dict[str, Path]) -> None:
    one, two = said(runs["one"])["judged"], said(runs["two"])["judged"]
    assert one.pop("lr") == pytest.approx(two.pop("lr"), rel=1e-6)
    assert one == two
    assert one["top1"]["before"] == pytest.approx(100 * 2 / 17, abs=1e-9)  # of the 17 images with a label


def test_resuming_with_two_is_bit_identical(runs: dict[str, Path]) -> None:
    whole, resumed = (weights(runs["two"], name) for name in ("whole", "resumed"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert {path.name for path in (runs["two"] / "here").iterdir()} == {STATE_NAME, *COURSE}


def test_resuming_with_another_number_of_processes(runs: dict[str, Path]) -> None:
    assert distances(weights(runs["one"], "whole"), weights(runs["two"], "continued"))[0] < 1e-6
    more: dict[str, Any] = {"state_dir": runs["two"] / "elsewhere", "resume": "auto"}
    continued = together_script.run(**more, **together_script.SHORT).model.state_dict()
    assert distances(weights(runs["two"], "whole"), continued)[0] < 1e-6


def test_a_signal_to_one_stops_all_after_the_same_step(runs: dict[str, Path]) -> None:
    for rank in (0, 1):
        found = said(runs["two"], rank)
        assert found["interrupted"].startswith("interrupted after step 2 of 5; `resume='auto'` continues from")
        assert found["timed"] == said(runs["two"])["timed"] > 0


REFUSED = {
    "few": "a batch of 1 images cannot be shared by 2 processes: give more images or a larger `batch_size`",
    "parts": "a batch of 3 images cannot be shared by 2 processes and split into 4 parts (`grad_accum`): give",
    "branches": "`grad_accum` splits batches, of which the statistics of `branches` have to see the whole",
    "images": "the processes of this run do not have the same number of training images: 1 has another than 0 (24 ",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shared(name: str, runs: dict[str, Path]) -> None:
    for rank in (0, 1):
        assert said(runs["two"], rank)[name].startswith(REFUSED[name])
    if name == "parts":
        assert said(runs["one"])[name].startswith("a batch of 3 images cannot be split into 4 parts (`grad_accum`)")
