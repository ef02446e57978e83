"""What torchrun says in the environment: read once, and refused in one message where it cannot be."""

from __future__ import annotations

import pytest

from tests.cli.commands import Run
from tests.cli.conftest import run as run
from vitcompact.errors import UsageError
from vitcompact.utils.launch import Place, place_of

TWO = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({"RANK": "3"}, None),
        ({"WORLD_SIZE": "1"}, None),
        ({"WORLD_SIZE": ""}, None),
        (TWO, Place(1, 2, 1)),
        ({**TWO, "WORLD_SIZE": "16", "RANK": "9", "LOCAL_RANK": "1"}, Place(9, 16, 1)),
    ],
)
def test_the_place_of_a_process(environment: dict[str, str], place: Place | None) -> None:
    assert place_of(environment) == place


BAD = {
    "nothing else": ({"WORLD_SIZE": "2"}, "without RANK, MASTER_ADDR, MASTER_PORT: "),
    "no address": ({**TWO, "MASTER_ADDR": ""}, "without MASTER_ADDR: "),
    "no port": ({**TWO, "MASTER_PORT": ""}, "without MASTER_PORT: "),
    "words": ({**TWO, "WORLD_SIZE": "two"}, "WORLD_SIZE in the environment must be a whole number at least 1"),
    "none": ({**TWO, "WORLD_SIZE": "0"}, "WORLD_SIZE in the environment must be"),
    "below": ({**TWO, "WORLD_SIZE": "-2"}, "WORLD_SIZE in the environment must be"),
    "rank in words": ({**TWO, "RANK": "1.0"}, "RANK in the environment must be a whole number from 0 to 1, got '1.0'"),
    "rank too large": ({**TWO, "RANK": "2"}, "RANK in the environment must be a whole number from 0 to 1, got '2'"),
    "local rank": ({**TWO, "LOCAL_RANK": "5"}, "LOCAL_RANK in the environment must be"),
    "port": ({**TWO, "MASTER_PORT": "99999"}, "MASTER_PORT in the environment must be a whole number from 1 to 65535"),
    "endless": ({**TWO, "WORLD_SIZE": "9" * 5000}, "WORLD_SIZE in the environment must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_environment_that_cannot_be(case: str) -> None:
    environment, message = BAD[case]
    with pytest.raises(UsageError, match=message) as caught:
        place_of(environment)
    assert "start all processes by torchrun, or unset WORLD_SIZE" in str(caught.value)


def test_the_command_line_says_so_before_anything_else(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    result = run("finetune")
    assert result.code == 2
    assert result.error.startswith("error: WORLD_SIZE is 2 in the environment, without RANK")
