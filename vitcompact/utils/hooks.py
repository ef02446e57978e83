"""Forward hooks that are there for a while only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def hooked(
    model: nn.Module, hooks: Mapping[str, Callable[..., Any]], *, before: bool = False, with_kwargs: bool = False
) -> Iterator[None]:
    """Call `hooks`, by module path ("" is `model` itself), whenever these modules run inside the context.

    Args:
        before: ahead of the module (a forward pre-hook), not after it.
        with_kwargs: pass the module's keyword arguments too.
    """
    with ExitStack() as stack:
        for name, hook in hooks.items():
            module = model.get_submodule(name)
            register: Callable[..., Any] = module.register_forward_pre_hook if before else module.register_forward_hook
            stack.callback(register(hook, with_kwargs=with_kwargs).remove)
        yield


@contextmanager
def recorded_inputs(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """The first argument of each module's latest call, by path."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _, args: found.update({name: args[0]})

    with hooked(model, {name: keep(name) for name in names}, before=True):
        yield found


@contextmanager
def recorded_outputs(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """What each module's latest call returned, by path."""
    found: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _, __, output: found.update({name: output})

    with hooked(model, {name: keep(name) for name in names}):
        yield found
