"""What of a batch this process trains on, in which parts, and what each part counts in the loss of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vitcompact.data.sampling import part_of
from vitcompact.errors import DataError, Interrupted, UsageError
from vitcompact.layers.branches import TokenBatchNorm
from vitcompact.training.options import TrainOptions
from vitcompact.training.sharded import Shards
from vitcompact.training.stream import TrainingStream
from vitcompact.utils.processes import ALONE, Processes

T = TypeVar("T")
SHARDABLE = ("adam", "adamw", "lion", "momentum", "muon", "nadam", "nadamw", "radam", "sgd")
"""timm optimizers that do the same with sharded weights as with whole ones (tests/training/test_sharded.py)."""
INTERRUPTED = "interrupted while evaluating"
"""What a process says that another one has interrupted."""


@dataclass(frozen=True)
class Weights:
    """The share of a batch's images that a part has, and of its labelled images: losses of parts add up to the whole's.

    Mean losses of parts with unequal numbers of images are not averaged but weighed by these.
    """

    images: float
    labelled: float


Part = tuple[Tensor, Tensor, Weights | None]
"""Images, labels, and what they count; None for a whole batch."""
Loss = Callable[..., Tensor]
"""Of images, labels and, for a part, `Weights`."""


@dataclass(frozen=True)
class Sharing:
    """How the batches of a run are shared by processes, and split into parts that follow each other in each of them.

    Attributes:
        accumulated: parts whose gradients are added up for one step.
        labels: labels are learned from.
        shards: models lie in parts on the processes; None for whole ones in each.
    """

    processes: Processes = ALONE
    accumulated: int = 1
    labels: bool = False
    shards: Shards | None = None

    @classmethod
    def of(cls, options: TrainOptions, processes: Processes, device: torch.device) -> Sharing:
        """As the options of a run want it.

        Raises:
            UsageError: `fsdp` in one process, or together with what it cannot be.
        """
        if options.fsdp:
            _check_shardable(options, processes)
        shards = Shards(processes.world, device) if options.fsdp else None
        return cls(processes, options.grad_accum, options.labels, shards)

    @property
    def whole(self) -> bool:
        """Whether batches stay in one piece."""
        return not self.processes.several and self.accumulated == 1

    def check(self, stream: TrainingStream, student: nn.Module) -> None:
        """Refuse what cannot be shared or split.

        Raises:
            UsageError: batches with fewer images than parts, or branches whose statistics would be those of parts.
        """
        if stream.batch_size < self.processes.world * self.accumulated:
            shared = f"shared by {self.processes.world} processes" if self.processes.several else ""
            split = f"split into {self.accumulated} parts (`grad_accum`)" if self.accumulated > 1 else ""
            raise UsageError(
                f"a batch of {stream.batch_size} images cannot be {' and '.join(filter(None, (shared, split)))}: give "
                "more images or a larger `batch_size`"
            )
        if self.accumulated > 1 and any(isinstance(module, TokenBatchNorm) for module in student.modules()):
            raise UsageError(
                "`grad_accum` splits batches, of which the statistics of `branches` have to see the whole: leave it "
                "out (`grad_checkpointing` saves memory too, and so do more processes), or convert without branches"
            )

    def stream(self, stream: TrainingStream) -> TrainingStream:
        """The rows of each batch that are this process's; an epoch, its steps and `batch_size` stay those of the whole.

        A stream with a method `shared(rank, world)` reads no more than its share.
        """
        if not self.processes.several:
            return stream
        share = getattr(stream, "shared", None)
        rank, world = self.processes.rank, self.processes.world
        found: TrainingStream = _Rows(stream, self.processes) if share is None else share(rank, world)
        return found

    def parts(self, images: Tensor, labels: Tensor) -> list[Part]:
        """This process's rows of a batch in parts, with what each counts.

        Raises:
            DataError: labels are wanted and no image of the whole batch has one.
        """
        if self.whole:
            return [(images, labels, None)]
        everything, known = self.processes.sums(len(images), int(labelled(labels).sum()) if self.labels else 0)
        if self.labels and not known:
            raise DataError("`labels` was given, but the images have no labels: leave it out")
        found: list[Part] = []
        for rows in torch.arange(len(images)).tensor_split(self.accumulated):
            some = labels[rows.to(labels.device)]
            share = int(labelled(some).sum()) / known if known else 0.0
            found.append((images[rows.to(images.device)], some, Weights(len(rows) / everything, share)))
        return found

    def value(self, loss: Loss, images: Tensor, labels: Tensor) -> float:
        """The loss of a whole batch of which these rows are this process's."""
        if self.whole:
            return float(loss(images, labels))
        parts = self.parts(images, labels)
        return self.processes.sums(sum(float(self.within(partial(loss, *part))) for part in parts))[0]

    def place(self, model: nn.Module, blocks: Sequence[str], device: torch.device) -> None:
        """Move a model of the run, or this process's part of it, to where it runs; for errors see `Shards.shard`."""
        if self.shards is None:
            model.to(device)
        else:
            self.shards.shard(model, blocks)

    def within(self, call: Callable[[], T]) -> T:
        """Call something that runs models of the run."""
        return call() if self.shards is None else self.shards.within(call)

    def learner(self, student: nn.Module, loss: Loss) -> Loss | None:
        """The loss of a part, times the number of processes, with gradients that are averaged over them; None for one.

        Blocks before the first changed one and, with a loss on blocks alone, the head get no gradients: torch looks for
        them at each step.
        """
        if not self.processes.several:
            return None
        if self.shards is None:
            module = Learner(student, loss, self.processes)
            return DistributedDataParallel(module, find_unused_parameters=True)
        return lambda *part: self.within(lambda: loss(*part) * self.processes.world)

    def evaluation(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterable[tuple[Tensor, Tensor]]:
        """The evaluation images of this process: every image is one process's."""
        if not self.processes.several:
            return batches
        share = getattr(batches, "shared", None)
        rank, world = self.processes.rank, self.processes.world
        found: Iterable[tuple[Tensor, Tensor]]
        found = _EvaluationRows(batches, self.processes) if share is None else share(rank, world)
        return found

    def in_step(
        self, batches: Iterable[tuple[Tensor, Tensor]], spare: tuple[Tensor, Tensor], check: Callable[[], None]
    ) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Evaluation batches of this process, and whether they count; `check` is called for each and may interrupt.

        Sharded models run in all processes or in none: one that has no images left runs `spare`, which does not count,
        and `Interrupted` is raised in all of them.
        """
        if self.shards is None:
            for images, labels in batches:
                check()
                yield images, labels, True
            return
        own = iter(batches)
        while True:
            batch, stopped = next(own, None), None
            try:
                check()
            except Interrupted as error:
                stopped = error
            left, stops = self.processes.sums(batch is not None, stopped is not None)
            if stops:
                raise stopped or Interrupted(INTERRUPTED)
            if not left:
                return
            yield (*batch, True) if batch is not None else (*spare, False)

    def whole_statistics(self, model: nn.Module) -> None:
        """Batch statistics of branches are of the whole batch, whoever has its rows."""
        if self.processes.several:
            for norm in _norms(model):
                norm.over_all = lambda tensor: _Total.apply(tensor, self.processes)


def labelled(labels: Tensor) -> Tensor:
    """Which images have a label, bool (batch,): of class numbers (batch,), -1 for none, or shares (batch, classes)."""
    return labels >= 0 if labels.ndim == 1 else labels.sum(dim=1) > 0


def own_statistics(model: nn.Module) -> None:
    """Take back `Sharing.whole_statistics`."""
    for norm in _norms(model):
        norm.over_all = None


def _norms(model: nn.Module) -> list[TokenBatchNorm]:
    return [module for module in model.modules() if isinstance(module, TokenBatchNorm)]


def _check_shardable(options: TrainOptions, processes: Processes) -> None:
    if not processes.several:
        raise UsageError(
            "`fsdp` shards a model over the processes that torchrun starts, and there is only one: leave it out"
        )
    if options.cache_teacher:
        raise UsageError(
            "`cache_teacher` and `fsdp` do not go together: a sharded original runs in all processes or in none, and "
            "what is cached may differ between them; leave one of the two out"
        )
    if options.opt is not None and options.opt not in SHARDABLE:
        raise UsageError(f"`fsdp` is known to work with these optimizers (`opt`) only: {', '.join(SHARDABLE)}")


class _Rows:
    """A stream of any kind, of which each process reads all and takes its rows."""

    def __init__(self, stream: TrainingStream, processes: Processes) -> None:
        self._stream, self._processes = stream, processes
        self.batch_size, self.num_samples = stream.batch_size, stream.num_samples
        self.steps_per_epoch = stream.steps_per_epoch

    def batches(self, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self._stream.batches(start_step):
            own = part_of(len(images), self._processes.rank, self._processes.world)
            yield images[own], labels[own]


class _EvaluationRows:
    """The same of evaluation images; a batch of which a process has no rows is passed over."""

    def __init__(self, batches: Iterable[tuple[Tensor, Tensor]], processes: Processes) -> None:
        self._batches, self._processes = batches, processes
        self.num_batches = getattr(batches, "num_batches", None)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self._batches:
            own = part_of(len(images), self._processes.rank, self._processes.world)
            if own.start < own.stop:
                yield images[own], labels[own]


class _Total(torch.autograd.Function):
    """A sum over processes with gradients: what one process's part does to the sum, it does to the losses of all."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        total = tensor.clone()
        processes.total(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        ctx.processes.total(total)
        return total, None


class Learner(nn.Module):
    """A student and its loss as one module, whose gradients torch's `DistributedDataParallel` averages.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html
    """

    def __init__(self, student: nn.Module, loss: Loss, processes: Processes) -> None:
        super().__init__()
        self.student, self._loss, self._world = student, loss, processes.world

    def forward(self, images: Tensor, labels: Tensor, weights: Weights | None) -> Tensor:
        """The part's loss times the number of processes, since gradients are averaged and losses of parts add up."""
        loss: Tensor = self._loss(images, labels, weights) * self._world
        return loss
