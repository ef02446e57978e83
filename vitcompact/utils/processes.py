"""Several processes of one run on torch's own engine: sums over all, what the first decides, and one end for all.

What is summed comes out the same to the bit in every process. Texts and numbers travel as JSON.

A process that fails says so in the store that all share before it lets go of the others, whose next exchange then ends;
they find what was said, and end with the same exit code and without a word (`Processes.ended`).
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vitcompact.errors import UsageError
from vitcompact.utils.launch import Place

T = TypeVar("T")
_FAILED, _CODE, _LEFT = "vitcompact/failed", "vitcompact/code", "vitcompact/left"
_LINGER = 10.0
"""Seconds that the process which holds the store waits for the others to read it, where torchrun does not hold it."""
_PATIENCE = 60.0
"""Seconds that a process may take to end when its launcher has gone."""
_SIGNS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "application timeout caused pair")


class LostError(UsageError):
    """Another process of the run has gone, or did not answer in time (exit code 2)."""


@dataclass(frozen=True)
class Processes:
    """The processes of one run, seen from one of them; alone unless `joined` says otherwise.

    Every method is called by all of them, in the same order.

    Attributes:
        rank: of this process; the first, 0, decides, writes and speaks.
        world: how many there are.
        local_rank: of this process on its machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    store: dist.Store | None = None

    @property
    def several(self) -> bool:
        """Whether there is more than this one."""
        return self.world > 1

    @property
    def first(self) -> bool:
        """Whether this is the one that decides, writes and speaks."""
        return self.rank == 0

    def total(self, *tensors: Tensor) -> None:
        """Sum tensors over all processes, in place."""
        if self.several:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def sums(self, *numbers: float) -> list[float]:
        """Each of some numbers, summed over all processes."""
        if not self.several:
            return list(numbers)
        held = torch.tensor(numbers, dtype=torch.float64)
        self.total(held)
        return held.tolist()

    def agreed(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process, which alone calls it: numbers, texts, lists and dicts of them."""
        if not self.several:
            return make()
        content = _bytes(make()) if self.first else torch.empty(0, dtype=torch.uint8)
        length = torch.tensor([len(content)])
        dist.broadcast(length, 0)
        content = content if self.first else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(content, 0)
        found: T = _value(content)
        return found

    def gathered(self, value: T) -> list[T]:
        """The value of every process, by rank."""
        if not self.several:
            return [value]
        written = _bytes(value)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(lengths, torch.tensor([len(written)]))
        longest = max(int(length) for length in lengths)
        contents = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.world)]
        dist.all_gather(contents, torch.cat((written, written.new_zeros(longest - len(written)))))
        return [_value(content[: int(length)]) for content, length in zip(contents, lengths, strict=True)]

    def largest(self, *numbers: int) -> list[int]:
        """Each of some numbers, the largest of all processes."""
        if not self.several:
            return list(numbers)
        held = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(held, dist.ReduceOp.MAX)
        return held.tolist()

    def stacked(self, rows: Tensor) -> Tensor:
        """The rows `(n, ...)` of all processes one below the other, by rank; of one without rows the shape is (0,)."""
        if not self.several:
            return rows
        counts = self.gathered(len(rows))
        shape = self.gathered(list(rows.shape[1:]))[max(range(self.world), key=counts.__getitem__)]
        whole = rows.new_zeros(sum(counts), *shape)
        if len(rows):
            start = sum(counts[: self.rank])
            whole[start : start + len(rows)] = rows
        self.total(whole)
        return whole

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Give tensors the values that they have in the first process, in place."""
        if not self.several:
            return
        for tensor in tensors:
            held = tensor.detach().contiguous()
            dist.broadcast(held, 0)
            if held.data_ptr() != tensor.data_ptr():
                tensor.detach().copy_(held)

    def check_same(self, what: str, value: Any) -> None:
        """Refuse a run whose processes do not see the same.

        Raises:
            UsageError: `value` differs between processes; it says in which.
        """
        found = self.gathered(value)
        if other := next((rank for rank, each in enumerate(found) if each != found[0]), None):
            shown = f" ({found[0]} and {found[other]})" if len(f"{found[0]}{found[other]}") < 60 else ""
            raise UsageError(
                f"the processes of this run do not have the same {what}: {other} has another than 0{shown}; give "
                "every machine the same files"
            )

    def check_enough(self, what: str, count: int) -> None:
        """Refuse fewer things than processes to share them.

        Raises:
            UsageError: see above.
        """
        if count < self.world:
            raise UsageError(f"{what} cannot be shared by {self.world} processes: start fewer, or give more images")

    def wait(self) -> None:
        """Until all have come this far."""
        if self.several:
            dist.barrier()

    def ended(self, code: Callable[[], int]) -> int:
        """The exit code of a run that failed here or elsewhere; `code` says the message and is called by one alone."""
        if self.store is None:
            return code()
        try:
            if self.store.add(_FAILED, 1) == 1:
                self.store.set(_CODE, str(found := code()))
            else:
                self.store.wait([_CODE], timedelta(seconds=_LINGER))
                found = int(self.store.get(_CODE))
        except (RuntimeError, ValueError):  # the process that held the store has gone
            return code()
        self._leave()
        return found

    def _leave(self) -> None:
        """Let go of the others; who holds the store does so until they have read it."""
        assert self.store is not None
        self.store.add(_LEFT, 1)
        _let_go()
        until = time.monotonic() + _LINGER
        while self.first and not _kept_by_torchrun() and time.monotonic() < until:
            if self.store.add(_LEFT, 0) >= self.world:
                return
            time.sleep(0.05)


ALONE = Processes()


@contextmanager
def joined(place: Place, timeout: float, device: str = "cpu") -> Iterator[Processes]:
    """The processes that torchrun started, once all are there; the end lets go of them.

    Args:
        timeout: seconds that a process waits for another, here and in every exchange.
        device: where models run; `cuda` exchanges by nccl what lies there, all else goes by gloo.

    Raises:
        LostError: not all came in time.
    """
    wait = timedelta(seconds=timeout)
    on_gpu = device.startswith(("cuda", "auto")) and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    try:
        store, rank, world = _interruptible(lambda: _meet(wait, "cpu:gloo,cuda:nccl" if on_gpu else "gloo"))
    except (RuntimeError, ValueError, OSError) as error:
        raise LostError(
            f"{place.world} processes were to meet at {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}, "
            f"and did not within {timeout:g} seconds (`dist_timeout`): {_first_line(error)}"
        ) from error
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_end_with, args=(os.getppid(),), name="vitcompact-launcher", daemon=True).start()
    try:
        yield Processes(rank, world, place.local_rank, store)
    finally:
        _let_go()


def _meet(wait: timedelta, backend: str) -> tuple[dist.Store, int, int]:
    """Until all are there and know each other: what they share, the rank of this one, how many they are."""
    store, rank, world = next(dist.rendezvous("env://", timeout=wait))
    store.set_timeout(wait)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=wait)
    return store, rank, world


def _interruptible(work: Callable[[], T]) -> T:
    """What `work` gives. torch waits where Python hears no signal, so it does so in a thread of its own."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="vitcompact-meeting", daemon=True).start()
    return outcome.result()


def is_lost(error: BaseException) -> bool:
    """Whether an error is that of an exchange in which another process did not take part; torch says so in texts."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)
    )


def lost(error: BaseException) -> LostError:
    """What to say of such an error."""
    return LostError(
        "another process of this run has gone or did not answer in time (`dist_timeout`): was it killed, or is its "
        f"machine out of reach? ({_first_line(error)})"
    )


def _bytes(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _value(content: Tensor) -> Any:
    return json.loads(content.numpy().tobytes())


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]


def _end_with(launcher: int) -> None:
    """End politely, then at once, when torchrun has gone: it starts processes that outlive it where it is killed."""
    while os.getppid() == launcher:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE)
    os._exit(130)


def _let_go() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _kept_by_torchrun() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
