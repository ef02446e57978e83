"""Models whose weights lie in parts on the processes of a run (torch's FSDP2), where one device cannot hold them.

Whoever needs a tensor as a whole asks for it (`whole`), and every process has to ask at the same time. States hold
whole tensors: a run can go on in another number of processes, sharded or not.

Source: https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vitcompact.errors import UsageError
from vitcompact.layers.merging_blocks import MergingBlock

T = TypeVar("T")


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may lie in parts, from all processes put together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_as(tensor: Tensor, other: Tensor) -> Tensor:
    """This process's part of a whole tensor, where `other` of the same shape lies in parts; else the tensor itself."""
    if not isinstance(other, DTensor) or isinstance(tensor, DTensor) or tensor.shape != other.shape:
        return tensor
    here = tensor.to(other.device)
    return distribute_tensor(here, other.device_mesh, other.placements, src_data_rank=None)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dictionary of a model that may lie in parts, on the CPU; what lies there whole is not copied."""
    return {name: whole(tensor.detach()).cpu() for name, tensor in model.state_dict().items()}


def load_whole(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load what `whole_weights` gave; for errors see `nn.Module.load_state_dict`."""
    own = model.state_dict()
    model.load_state_dict({name: placed_as(t, own[name]) if name in own else t for name, t in weights.items()})


class Shards:
    """The sharded models of one run.

    Args:
        world: number of processes.
        device: of this process.
    """

    def __init__(self, world: int, device: torch.device) -> None:
        self._mesh = init_device_mesh(device.type, (world,))
        self._models: list[_Whole] = []

    def shard(self, model: nn.Module, blocks: Sequence[str]) -> None:
        """Keep a part of `model` here, on the device of the run; what it computes is the same.

        Weights of one of its `blocks` (module paths) are put together while that block runs; those outside of them
        while `within` runs.

        Raises:
            UsageError: parameters are used in more than one place.
        """
        names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        if len(names) != sum(1 for _ in model.parameters()):
            raise UsageError(
                "`fsdp`: this model uses a weight in several places, which cannot be sharded: leave it out"
            )
        for unit in _units(model, blocks):
            fully_shard(unit, mesh=self._mesh, reshard_after_forward=True)
        root = _Whole(model)
        fully_shard(root, mesh=self._mesh, reshard_after_forward=True)
        self._models.append(root)

    def within(self, call: Callable[[], T]) -> T:
        """Call something that runs the models."""
        for root in self._models:
            call = partial(root, call)
        return call()


class _Whole(nn.Module):
    """What torch puts a model's weights outside of its blocks together for: whichever of its methods is called."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[[], Any]) -> Any:
        return call()


def _units(model: nn.Module, blocks: Sequence[str]) -> Iterator[nn.Module]:
    """What is put together at a time: blocks, or the parts of one that its trunk does not call as a module."""
    for name in blocks:
        block = model.get_submodule(name)
        if isinstance(block, MergingBlock):
            yield from (block.attn, block.mlp)
        else:
            yield block
