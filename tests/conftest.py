"""Fixtures that every test may use."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import pytest
import torch

SHARED = Path(os.environ.get("VITCOMPACT_SHARED", Path(__file__).resolve().parents[2] / "shared"))


if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: one thread each
    torch.set_num_threads(1)


for number in (signal.SIGINT, signal.SIGHUP):  # a job in the background ignores them, and so would those started here
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with the real checkpoints and data sets; tests that need it skip where it is absent."""
    if not (SHARED / "models").is_dir():
        pytest.skip("the real checkpoints and data sets are not beside this checkout")
    return SHARED


class _Seeded:
    """What a fixture of several tests draws depends neither on the tests before it nor on the process."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> None:
        if fixturedef.scope != "function":
            torch.manual_seed(0)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Seeded())  # hooks of this file are not called for fixtures of the whole session


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where paths lie that published files name without folders is kept here, not in the user's cache."""
    os.environ["VITCOMPACT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _heard() -> None:
    """Messages are heard, whatever a script or a verb that ran in this process made of their logger."""
    logger = logging.getLogger("vitcompact")
    logger.setLevel(logging.NOTSET)
    logger.propagate, logger.disabled = True, False


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
