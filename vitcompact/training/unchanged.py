"""Where a student begins to differ from its teacher: before that there is nothing to learn, only to spoil."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

ROUNDING = 1e-2
"""Relative distance up to which two tensors are the same but for the number format they were saved in."""


def first_changed_block(student: nn.Module, teacher: nn.Module, blocks: Sequence[str]) -> str | None:
    """The first of `blocks` (module paths in forward order) that is not the teacher's.

    None where no block differs, where the student lacks one, and where something outside of the blocks differs: what
    comes before which block is not known then.
    """
    states = [model.state_dict() for model in (student, teacher)]
    prefixes = [f"{name}." for name in blocks]
    outside = [{name: x for name, x in state.items() if not name.startswith(tuple(prefixes))} for state in states]
    if not _same(*outside):
        return None
    for block, prefix in zip(blocks, prefixes, strict=True):
        mine, other = ({name: x for name, x in state.items() if name.startswith(prefix)} for state in states)
        if not _same(mine, other):
            return block if mine else None
    return None


def stop_gradients_before(model: nn.Module, block: str) -> RemovableHandle:
    """Backward passes end at the input of a block: parameters before it get no gradients, and cost no time."""
    return model.get_submodule(block).register_forward_pre_hook(_detached)


def _detached(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    x = args[0].detach()
    x.__dict__.update(args[0].__dict__)  # what travels along with merged tokens
    return (x, *args[1:])


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    if first.keys() != second.keys():
        return False
    pairs = [(tensor, second[name]) for name, tensor in first.items()]
    return all(
        one.shape == other.shape and bool((one.float() - other.float()).norm() <= ROUNDING * other.float().norm())
        for one, other in pairs
    )
