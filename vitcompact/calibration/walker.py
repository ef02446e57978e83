"""Walks a model block by block: what each block is called with, whatever the model does in between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vitcompact.models import Site
from vitcompact.utils.hooks import hooked, recorded_outputs


class _Stop(Exception):
    """Ends a forward pass once what was wanted of it is known."""


Output = Tensor | tuple[Any, ...]
"""What a block returns: its tokens, or several things of which some are tensors (timm/models/tnt.py, mvitv2.py)."""


def tensors_of(output: Output) -> tuple[Tensor, ...]:
    """The tensors of what a block returns."""
    return (output,) if isinstance(output, Tensor) else tuple(part for part in output if isinstance(part, Tensor))


def rebuilt(output: Output, tensors: Iterator[Tensor]) -> Output:
    """The same with other tensors."""
    if isinstance(output, Tensor):
        return next(tensors)
    return tuple(next(tensors) if isinstance(part, Tensor) else part for part in output)


@dataclass
class BlockCall:
    """The arguments of one call of a block; `x` is the tensor it transforms, `rest` and `kwargs` the others."""

    x: Tensor
    rest: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def run(self, block: nn.Module) -> Output:
        """`block(x, ...)`."""
        out: Output = block(self.x, *self.rest, **self.kwargs)
        return out


class BlockWalker:
    """Finds the input of block `i` from the outputs of blocks before it without a copy of the model's forward.

    Where block `i` is called with the very tensor that block `i - 1` returned, that tensor is it. Elsewhere
    (down-sampling between stages, a change of layout) the model's own forward runs with every block replaced by what
    it returned, so only the layers between blocks are computed. Which of the two holds is probed once, and so is which
    blocks further back an input depends on (shortcuts past the blocks of a stage: timm/models/mobilevit.py).

    Attributes:
        blocks: module paths of the blocks that can be walked, in the order in which they are called.
        unreachable: those that cannot, and sites that run several times in their block, with the reason.
        outputs: the form of what each block returned for the example, without its numbers.
        further_back: for each block, those ahead of the one before it whose outputs its input depends on as well.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], example: Tensor) -> None:
        self.model, self._example = model, len(example)
        blocks = walked_blocks(model, sites)
        calls, outputs, runs = self._record(blocks, [site.name for site in sites], example)
        self.blocks = tuple(name for name in calls if len(calls[name]) == 1)
        self.unreachable = {name: "it does not run in a forward pass" for name in blocks if name not in calls}
        runs.update({name: len(calls[name]) for name in calls if name not in runs})
        self.unreachable |= {name: "it runs more than once a forward pass" for name, times in runs.items() if times > 1}
        self.outputs = [_without_data(outputs[name]) for name in self.blocks]
        first = {name: calls[name][0] for name in self.blocks}
        self._chained = [False] + [
            first[now].x is outputs[before] and not _tensors(first[now])
            for before, now in zip(self.blocks, self.blocks[1:], strict=False)
        ]
        self._extra = [(first[name].rest, first[name].kwargs) for name in self.blocks]
        self.further_back: list[tuple[int, ...]] = []
        self._check(example, first, [outputs[name] for name in self.blocks])

    def why_not(self, site: Site) -> str | None:
        """Why a site cannot be reached; None where it can."""
        return self.unreachable.get(site.block) or self.unreachable.get(site.name)

    def needed(self, index: int) -> tuple[int, ...]:
        """The blocks whose outputs the input of block `index` depends on, in their order."""
        return (*self.further_back[index], index - 1) if index else ()

    def last_use(self, index: int) -> int:
        """The last block whose input depends on what block `index` returned."""
        return max([index + 1, *(later for later, back in enumerate(self.further_back) if index in back)])

    def enter(self, index: int, images: Tensor | None, outputs: Mapping[int, Output]) -> BlockCall:
        """What block `index` is called with, given the outputs of the blocks that are `needed(index)`.

        Args:
            images: the batch `(batch, 3, height, width)`; not needed where `chained(index)`.
        """
        if self._chained[index]:
            previous = outputs[index - 1]
            assert isinstance(previous, Tensor)
            return BlockCall(previous, *self.others(index))
        assert images is not None
        call = self._replay(index, images, outputs)
        assert call is not None  # `_check` saw it run
        return call

    def others(self, index: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What block `index` is called with beside the tensor that it transforms, for the example."""
        return self._extra[index]

    def chained(self, index: int) -> bool:
        """Whether block `index` is called with exactly what the block before it returned."""
        return self._chained[index]

    def _record(
        self, blocks: Sequence[str], sites: Sequence[str], example: Tensor
    ) -> tuple[dict[str, list[BlockCall]], dict[str, Output], Counter[str]]:
        """Calls and outputs of blocks in a forward pass, and how many times each site runs."""
        calls: dict[str, list[BlockCall]] = {}
        runs: Counter[str] = Counter()

        def before(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                calls.setdefault(name, []).append(BlockCall(args[0], args[1:], kwargs))

            return hook

        def count(name: str) -> Callable[..., None]:
            return lambda *_: runs.update([name])

        hooks = {name: before(name) for name in blocks}
        with (
            hooked(self.model, hooks, before=True, with_kwargs=True),
            hooked(self.model, {name: count(name) for name in sites}, before=True),
            recorded_outputs(self.model, blocks) as outputs,
        ):
            self.model(example)
        return calls, outputs, runs

    def _check(self, example: Tensor, first: dict[str, BlockCall], outputs: list[Output]) -> None:
        """Find what each input depends on; drop blocks whose input is no function of images and blocks before."""
        for index, name in enumerate(self.blocks):
            further_back = self._dependencies(index, example, first[name], outputs[:index])
            if further_back is None:
                for later in self.blocks[index:]:
                    self.unreachable[later] = "its input depends on more than the blocks before it"
                self.blocks = self.blocks[:index]
                break
            self.further_back.append(further_back)

    def _dependencies(
        self, index: int, example: Tensor, wanted: BlockCall, outputs: list[Output]
    ) -> tuple[int, ...] | None:
        """Blocks ahead of the one before `index` that its input depends on; None where all of them do not suffice."""
        if self._chained[index]:
            return ()
        known = dict(enumerate(outputs))
        previous = known.get(index - 1)

        def suffice(blocks: Sequence[int]) -> bool:
            call = self._replay(index, example, {block: known[block] for block in blocks})
            return call is not None and all(map(torch.equal, _inputs(call, previous), _inputs(wanted, previous)))

        needed = list(known)
        if suffice(needed[-1:]):
            return ()
        if not suffice(needed):
            return None
        for block in range(index - 1):
            if suffice(without := [other for other in needed if other != block]):
                needed = without
        return tuple(block for block in needed if block != index - 1)

    def _replay(self, index: int, images: Tensor, outputs: Mapping[int, Output]) -> BlockCall | None:
        """What block `index` is called with; None where it is not called once the blocks before it are replaced."""
        caught: list[BlockCall] = []

        def stop(x: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
            caught.append(BlockCall(x, rest, kwargs))
            raise _Stop

        def stand_in(position: int) -> Callable[..., Output]:
            if position in outputs:
                return lambda *_, **__: outputs[position]
            output = self.outputs[position]
            shapes = [(images.shape[0] * len(t) // self._example, *t.shape[1:]) for t in tensors_of(output)]
            return lambda x, *_, **__: rebuilt(output, (x.new_zeros(()).expand(shape) for shape in shapes))

        forwards = {name: stand_in(i) for i, name in enumerate(self.blocks[:index])}
        forwards[self.blocks[index]] = stop
        with replaced_forwards(self.model, forwards):
            try:
                self.model(images)
            except _Stop:
                return caught[0]
        return None


def _without_data(output: Output) -> Output:
    return rebuilt(output, (t.new_zeros(()).expand(t.shape) for t in tensors_of(output)))


def _tensors(call: BlockCall) -> bool:
    return any(isinstance(value, Tensor) for value in (*call.rest, *call.kwargs.values()))


def _inputs(call: BlockCall, previous: Output | None) -> tuple[Tensor, ...]:
    """The tensors that a block transforms: its first argument, or all of them after a block that returns several."""
    return (call.x,) if not isinstance(previous, tuple) else tensors_of((call.x, *call.rest))


@contextmanager
def replaced_forwards(model: nn.Module, forwards: dict[str, Callable[..., Output]]) -> Iterator[None]:
    """Let submodules answer with other functions for a while."""
    modules = [(model.get_submodule(name), function) for name, function in forwards.items()]
    for module, function in modules:
        module.forward = function
    try:
        yield
    finally:
        for module, _ in modules:
            del module.forward


def capture_input(call: BlockCall, block: nn.Module, module: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with which `module` inside `block` is called; the block runs only that far."""
    caught: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append((args, kwargs))
        raise _Stop

    with hooked(module, {"": hook}, before=True, with_kwargs=True), suppress(_Stop):
        call.run(block)
    return caught[0]


def walked_blocks(model: nn.Module, sites: Sequence[Site]) -> list[str]:
    """The blocks with sites plus their siblings in the same container, which activations pass through as well."""
    names = []
    for block in dict.fromkeys(site.block for site in sites):
        parent, _, _ = block.rpartition(".")
        holder = model.get_submodule(parent)
        siblings = [f"{parent}.{n}" if parent else n for n, m in holder.named_children()]
        names += siblings if isinstance(holder, nn.Sequential | nn.ModuleList) else [block]
    return list(dict.fromkeys(names))
