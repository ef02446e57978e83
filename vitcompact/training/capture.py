"""Outputs of named blocks during a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from vitcompact.errors import NothingToCompactError, UsageError
from vitcompact.models import inspect

Output = TypeVar("Output")


class BlockOutputs:
    """Records what the modules `names` of `model` return; `close` takes its forward hooks off again.

    Raises:
        UsageError: the model has no module of one of these names.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._found: dict[str, Tensor] = {}
        self._recording = False
        modules = dict(model.named_modules())
        missing = [name for name in self._names if name not in modules]
        if missing:
            raise UsageError(f"the model and its original do not match: one has no block {', '.join(missing)}")
        self._handles = [modules[name].register_forward_hook(self._hook(name)) for name in self._names]

    def record(self, forward: Callable[[], Output]) -> tuple[Output, list[Tensor]]:
        """Run `forward` and return its result with the outputs of all blocks, in the order of `names`."""
        self._recording = True  # only here: activation checkpointing runs the blocks again in the backward pass
        try:
            output = forward()
        finally:
            self._recording = False
        found, self._found = self._found, {}
        return output, [found[name] for name in self._names]

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            if self._recording:
                self._found[name] = output[0] if isinstance(output, (tuple, list)) else output

        return keep


def block_names(teacher: nn.Module) -> tuple[str, ...]:
    """Module paths of the teacher's residual blocks, which its student has too; none where they are not known."""
    try:
        return inspect(teacher).blocks
    except NothingToCompactError:
        return ()
