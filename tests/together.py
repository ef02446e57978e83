"""Several processes of one run on this machine, in the environment that torchrun makes.

They are forked from a server that has loaded torch and timm once: loading them takes longer than what is tested.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from vitcompact.cli.app import main

LOADED = ["vitcompact.public", "vitcompact.cli.verbs.finetune", "vitcompact.cli.verbs.convert", "tests.together"]


@dataclass(frozen=True)
class Ended:
    """How one process has ended: its exit code, negative for a signal, and both of its streams."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Started:
    """A process at work, and the files that its streams go to."""

    process: BaseProcess
    streams: tuple[Path, Path]


def started(
    work: Callable[..., int | None],
    *arguments: object,
    folder: Path,
    world: int = 2,
    own: Sequence[Mapping[str, str]] = (),
) -> list[Started]:
    """`work(*arguments)` in `world` processes, each in `folder`; what it returns is their exit code.

    Args:
        own: what the environment of each has beside what all have.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = []
    for rank in range(world):
        environment = {"WORLD_SIZE": world, "RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment |= own[rank] if rank < len(own) else {}
        streams = folder / f"{port}-{rank}.out", folder / f"{port}-{rank}.err"
        for path in streams:
            path.touch()  # they may be read before the process has come to its first line
        given = {name: str(value) for name, value in environment.items()}
        process = context.Process(target=_work, args=(work, arguments, folder, given, streams))
        process.start()
        made.append(Started(process, streams))
    return made


def _work(
    work: Callable[..., int | None],
    arguments: Sequence[object],
    folder: Path,
    environment: Mapping[str, str],
    streams: tuple[Path, Path],
) -> None:
    for path, number in zip(streams, (1, 2), strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.exit(work(*arguments))


def eventually(happened: Callable[[], bool], *, within: float = 100) -> None:
    """Wait until something has happened.

    Raises:
        AssertionError: not in so many seconds.
    """
    until = time.monotonic() + within
    while not happened():
        assert time.monotonic() < until, f"not in {within:g} seconds"
        time.sleep(0.1)


def ended(processes: Sequence[Started], timeout: float = 100) -> list[Ended]:
    """Wait for all; none is left behind."""
    until = time.monotonic() + timeout
    for each in processes:
        each.process.join(max(0.0, until - time.monotonic()))
    for each in processes:
        each.process.kill()
        each.process.join()
    codes = [each.process.exitcode for each in processes]
    texts = [[path.read_text() for path in each.streams] for each in processes]
    return [Ended(-99 if code is None else code, *text) for code, text in zip(codes, texts, strict=True)]


def commands(*lines: Sequence[str]) -> int:
    """Command lines one after the other, for `started`; the exit code of the first that fails."""
    return next((code for words in lines if (code := main(list(words)))), 0)
