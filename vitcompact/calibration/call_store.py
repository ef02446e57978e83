"""What a block is called with, batch by batch, put aside: making it may take the layers ahead of it and the images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitcompact.calibration.store import ActivationStore
from vitcompact.calibration.walker import BlockCall

X = "call"
"""Key under which the tensor that the block transforms lies in the store."""


class CallStore:
    """Calls of one block. Of their other arguments, tensors that are the same for every batch are kept once."""

    def __init__(self, store: ActivationStore) -> None:
        self._store = store
        self._calls: list[tuple[dict[str, int], BlockCall]] = []

    def append(self, call: BlockCall) -> None:
        """Keep the call of the next batch."""
        batch = len(self._calls)
        self._store.put(X, batch, call.x.detach().cpu())
        places = {}
        for key, value in _others(call).items():
            if isinstance(value, Tensor):
                places[key] = self._place(key, batch, value.detach().cpu())
        bare = [None if str(i) in places else value for i, value in enumerate(call.rest)]
        named = {name: None if name in places else value for name, value in call.kwargs.items()}
        self._calls.append((places, BlockCall(call.x.new_empty(0), tuple(bare), named)))

    def get(self, batch: int, device: torch.device) -> BlockCall:
        """The call of a batch."""
        rest, kwargs = self.others(batch, device)
        return BlockCall(self._store.get(X, batch).to(device), rest, kwargs)

    def others(self, batch: int, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call beside the tensor that is transformed."""
        places, bare = self._calls[batch]
        found = {key: self._store.get(_key(key), place).to(device) for key, place in places.items()}
        rest = tuple(found.get(str(i), value) for i, value in enumerate(bare.rest))
        return rest, {name: found.get(name, value) for name, value in bare.kwargs.items()}

    def clear(self) -> None:
        """Forget all calls."""
        for batch, (places, _) in enumerate(self._calls):
            self._store.drop(X, batch)
            for key in places:
                self._store.drop(_key(key), batch)
        self._calls.clear()

    def _place(self, key: str, batch: int, value: Tensor) -> int:
        """The batch under which an argument's tensor lies: this one, or the one before where it is the same there."""
        before = self._calls[-1][0].get(key) if self._calls else None
        if before is not None and torch.equal(self._store.get(_key(key), before), value):
            return before
        self._store.put(_key(key), batch, value)
        return batch


def _others(call: BlockCall) -> dict[str, Any]:
    """The other arguments, those without a name under their place."""
    return {**{str(i): value for i, value in enumerate(call.rest)}, **call.kwargs}


def _key(argument: str) -> str:
    return f"{X}-{argument}"
