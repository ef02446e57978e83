"""The whole job on the bundled model, with next to no training."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch

from vitcompact.demo import run
from vitcompact.training import TrainOptions
from vitcompact.utils.progress import Silent


class Threads(Silent):
    """Notes how many threads torch has while anything runs."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self.seen.add(torch.get_num_threads())


@pytest.fixture(autouse=True)
def _as_many_threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_whole_job_on_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[run.__module__]
    monkeypatch.setattr(module, "TRAINING", TrainOptions(steps=2))
    monkeypatch.setattr(module, "NUM_ROUNDS", 2)
    threads = Threads()
    torch.set_num_threads(2)
    result = run(tmp_path, threads)
    assert (threads.seen, torch.get_num_threads()) == ({1}, 2)
    original, naive, pair, tuned, converted, folded = result.stages
    assert folded.top1 == converted.top1
    assert original.top1 is not None
    assert naive.top1 is not None
    assert converted.top1 is not None
    assert pair.top1 is not None
    assert naive.top1 < pair.top1 <= converted.top1 <= original.top1
    assert folded.macs <= pair.macs == tuned.macs < original.macs
    low, high = result.pair_speedup_interval
    assert low <= result.pair_speedup <= high
    assert converted.top1 > original.top1 - 5
    assert result.macs_ratio == pytest.approx(folded.macs / original.macs)
    loaded = timm.create_model(f"local-dir:{result.out}", pretrained=True)
    assert sum(parameter.numel() for parameter in loaded.parameters()) == folded.params < original.params
