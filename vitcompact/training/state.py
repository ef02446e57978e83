"""The resumable state of a run as one safetensors file: tensors, and everything else as JSON in its header."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import safe_open
from torch import Tensor

from vitcompact.checkpoint.disk import write_tensors
from vitcompact.errors import CheckpointError, UsageError
from vitcompact.training.sharded import placed_as, whole
from vitcompact.utils.files import disk_errors, replace_file
from vitcompact.utils.processes import Processes
from vitcompact.utils.reading import check_regular, parse_json

STATE_NAME = "last.safetensors"
BEST_NAME = "best.safetensors"
STATE_VERSION = 1
_KEY = "vitcompact_state"
_UNREADABLE = (OSError, safetensors.SafetensorError, ValueError, MemoryError)
"""What comes of a file that is none; a huge one with holes cannot be mapped."""


@dataclass
class State:
    """`tensors` by dotted name, and JSON-ready `values`."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def put(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Add `tensors` under `prefix.`."""
        self.tensors.update({f"{prefix}.{name}": tensor for name, tensor in tensors.items()})

    def take(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under `prefix.`, without it."""
        start = f"{prefix}."
        return {name[len(start) :]: tensor for name, tensor in self.tensors.items() if name.startswith(start)}


def save_state(state: State, path: Path) -> None:
    """Write `path` so that it is complete or not there at all, also after a kill or a power cut.

    Raises:
        UsageError: the disk refuses; what was there before is still there.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.tensors.values())
    header = {"format": "pt", _KEY: json.dumps({"version": STATE_VERSION, **state.values})}

    def write(temporary: Path) -> None:
        with disk_errors(path, size):
            write_tensors(_unshared(state.tensors), temporary, header)

    replace_file(path, write)


def told_state(make: Callable[[], State], processes: Processes) -> State:
    """The state that the first process makes, in all of them."""
    if not processes.several:
        return make()
    state = make() if processes.first else State()
    layout = {name: (str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in state.tensors.items()}
    values, layout = processes.agreed(lambda: (state.values, layout))
    if not processes.first:
        empty = {name: torch.empty(shape, dtype=getattr(torch, kind)) for name, (kind, shape) in layout.items()}
        state = State(empty, values)
    state.tensors = {name: tensor.cpu().contiguous() for name, tensor in state.tensors.items()}
    processes.same(tensor.reshape(-1).view(torch.uint8) for tensor in state.tensors.values() if tensor.numel())
    return state


def is_state(path: Path) -> bool:
    """Whether a file is a state that `save_state` wrote, by its header."""
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            return _KEY in (file.metadata() or {})
    except _UNREADABLE:
        return False


def load_state(path: Path, *, tensors: bool = True) -> State:
    """Read what `save_state` wrote; without `tensors` its values alone, which lie in the header.

    Raises:
        CheckpointError: it is damaged, or not such a state.
    """
    advice = "delete it to start anew"
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            values = parse_json((file.metadata() or {}).get(_KEY, "null"))
            found = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except _UNREADABLE as error:
        raise CheckpointError(f"cannot read the training state {path}: {error}; {advice}") from error
    if not isinstance(values, dict) or values.get("version") != STATE_VERSION:
        raise CheckpointError(f"{path} is not a training state of this release; {advice}")
    return State(found, values)


def pack_optimizer(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Put the optimizer's tensors and numbers into `state`.

    Raises:
        UsageError: it keeps something else, which a file without pickles cannot hold.
    """
    packed = optimizer.state_dict()
    numbers: dict[str, dict[str, Any]] = {}
    for index, entry in packed["state"].items():
        for name, value in entry.items():
            if isinstance(value, Tensor):
                state.tensors[f"optimizer.{index}.{name}"] = whole(value)
            elif value is None or isinstance(value, (bool, int, float, str)):
                numbers.setdefault(str(index), {})[name] = value
            else:
                raise UsageError(
                    f"this optimizer keeps a {type(value).__name__} that `resume` cannot save: try `opt='adamw'`"
                )
    groups = [{name: value for name, value in group.items() if name != "params"} for group in packed["param_groups"]]
    for index, group in enumerate(groups):  # some optimizers count their steps here, in a tensor
        state.put(f"group.{index}", {name: value for name, value in group.items() if isinstance(value, Tensor)})
    plain = [{name: value for name, value in group.items() if _plain(value)} for group in groups]
    state.values["optimizer"] = {"numbers": numbers, "groups": plain}


def unpack_optimizer(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Give `optimizer`, made anew with the same groups, its saved state back."""
    entries: dict[int, dict[str, Any]] = {}
    for name, tensor in state.take("optimizer").items():
        index, _, key = name.partition(".")
        entries.setdefault(int(index), {})[key] = tensor
    saved = state.values["optimizer"]
    for number, values in saved["numbers"].items():
        entries.setdefault(int(number), {}).update(values)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    _check_shapes(parameters, entries)
    for place, entry in entries.items():
        entry.update({k: placed_as(v, parameters[place]) for k, v in entry.items() if isinstance(v, Tensor)})
    groups = []
    for place, (now, before) in enumerate(zip(optimizer.state_dict()["param_groups"], saved["groups"], strict=True)):
        if wrong := next((name for name, value in before.items() if not _same_kind(now.get(name), value)), None):
            raise ValueError(f"{wrong} of the optimizer is {str(before[wrong])[:40]}")
        restored = {k: tuple(v) if isinstance(now.get(k), tuple) else v for k, v in before.items()}
        groups.append({**now, **restored, **state.take(f"group.{place}")})
    optimizer.load_state_dict({"state": entries, "param_groups": groups})


def _check_shapes(parameters: Sequence[Tensor], entries: Mapping[int, Mapping[str, Any]]) -> None:
    """Raises ValueError for a tensor that belongs to no parameter, or is of no shape that follows from its one."""
    for index, entry in entries.items():
        shape = parameters[index].shape if 0 <= index < len(parameters) else torch.Size()
        for name, value in entry.items():
            axes = iter(shape)
            follows = not isinstance(value, Tensor) or value.numel() == 1 or all(side in axes for side in value.shape)
            if index >= len(parameters) or not follows:
                raise ValueError(f"{name} of parameter {index} is of another shape")


def _same_kind(now: object, before: object) -> bool:
    """Whether a saved value may stand for one that the optimizer has now."""
    if isinstance(now, (list, tuple)) and isinstance(before, (list, tuple)):
        return len(now) == len(before) and all(map(_same_kind, now, before))
    if isinstance(now, (bool, str)) or isinstance(before, (bool, str)):
        return now == before
    if isinstance(now, Tensor) or isinstance(before, (int, float)):
        return isinstance(before, (int, float)) and math.isfinite(before)
    return now is None or before is None


def _plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses tensors that share memory (tied weights): those are copied."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        shared = address in seen or tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
        result[name] = tensor.detach().clone() if shared else tensor.detach().contiguous()
        seen.add(address)
    return result
