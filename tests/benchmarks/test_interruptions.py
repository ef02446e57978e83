"""A sample of `benchmarks/interruptions.py`: ends, refusals and signals in the middle of `save` over an older model."""

from __future__ import annotations

import pytest
from interruptions_cases import CASES
from interruptions_events import can_tear
from interruptions_memory import Memory
from interruptions_trial import Trial


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    work = tmp_path_factory.mktemp("interruptions")
    return Trial("save in Python, over", CASES["save in Python, over"], work, Memory(work / "memory"))


def test_the_changes_of_the_disk_are_all_seen(trial: Trial) -> None:
    names = [event.name for event in trial.events]
    assert {"open", "os.mkdir", "native.write", "vitcompact.exchange", "os.remove", "os.rmdir"} <= set(names)
    assert sum(can_tear(event) for event in trial.events) >= 5  # four files, the weights twice


@pytest.mark.parametrize("kind", ["kill", "tear", "SIGINT", "EIO", "two"])
def test_nothing_is_lost_or_left(trial: Trial, kind: str) -> None:
    """At the exchange of old and new and after it, where there is most to lose; half-written weights."""
    swap = next(i for i, event in enumerate(trial.events) if event.name == "vitcompact.exchange")
    torn = [i for i, event in enumerate(trial.events) if can_tear(event)]
    places = {"kill": [swap, swap + 1], "tear": [torn[-1]], "SIGINT": [swap + 1]}
    for number in places.get(kind, [swap]):
        if kind == "two":
            trial.twice(number)
        else:
            trial.interrupt(kind, number)
    assert trial.outcome.wrong == []
