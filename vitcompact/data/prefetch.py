"""Ordered work ahead of the consumer in threads, and the caches that save doing it twice."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`map(function, items)` with up to `workers` items computed ahead in threads; order and results are the same.

    Threads suffice because Pillow and torch release the interpreter lock while they decode and resample, and they
    need neither shared memory nor pickling. A consumer that stops early leaves no work running.
    """
    if workers == 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="vitcompact-data") as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def sent_ahead(batches: Iterable[tuple[Tensor, ...]], device: torch.device) -> Generator[tuple[Tensor, ...]]:
    """The batches on `device`; while CUDA works on one, the next is read, pinned and sent, by a thread and a stream.

    A consumer that stops early has read one batch more than it got.
    """
    if device.type != "cuda":
        yield from (tuple(tensor.to(device) for tensor in batch) for batch in batches)
        return
    ahead, reader = torch.cuda.Stream(device), iter(batches)
    ahead.wait_stream(torch.cuda.current_stream(device))

    def send() -> tuple[Tensor, ...] | None:
        with torch.cuda.stream(ahead):
            batch = next(reader, None)
            host = [tensor.pin_memory() if tensor.device.type == "cpu" else tensor for tensor in batch or ()]
            sent = tuple(tensor.to(device, non_blocking=True) for tensor in host)
            ahead.synchronize()  # waits for the copy alone, and in this thread; `host` has to last until then
        return None if batch is None else sent

    with ThreadPoolExecutor(1, thread_name_prefix="vitcompact-send") as pool:
        pending = pool.submit(send)
        while (batch := pending.result()) is not None:
            pending = pool.submit(send)
            for tensor in batch:
                tensor.record_stream(torch.cuda.current_stream(device))
            yield batch


def chunked(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items; the last one may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


class BoundedCache(Generic[Item]):
    """Keeps values by index until `limit_mb` MiB are full; what does not fit is simply not kept. Thread-safe."""

    def __init__(self, limit_mb: int) -> None:
        self._room = limit_mb * 2**20
        self._values: dict[int, Item] = {}
        self._lock = threading.Lock()

    def get(self, index: int) -> Item | None:
        return self._values.get(index)

    def put(self, index: int, value: Item, num_bytes: int) -> None:
        with self._lock:
            if index not in self._values and num_bytes <= self._room:
                self._values[index] = value
                self._room -= num_bytes

    def __len__(self) -> int:
        return len(self._values)
