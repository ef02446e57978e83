"""The two activation streams, original and converted, advanced one block at a time over the calibration images."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vitcompact.calibration.call_store import CallStore, X
from vitcompact.calibration.capture import SiteInput, drift_sites, run_original, run_to
from vitcompact.calibration.held_out import GROUP, Parts, group_size, held_out, is_held_out, whole_groups
from vitcompact.calibration.store import ActivationStore
from vitcompact.calibration.sums import Sums
from vitcompact.calibration.token_weights import Sensitivity
from vitcompact.calibration.walker import BlockCall, BlockWalker, Output, rebuilt, tensors_of
from vitcompact.data import ImageBatches, placed, processes_of
from vitcompact.models import Site
from vitcompact.utils.device import device_of
from vitcompact.utils.heap import trim_heap


@dataclass
class BlockBatch:
    """One call of a block in the converted stream, and the original block's output."""

    call: BlockCall
    target: Tensor


class Streams:
    """Inputs of the current block for both streams, targets of its sites; memory is one block's, spilled past a limit.

    A block costs one run in the original stream, one in the converted stream, and part of one for each set of
    statistics in between. The layers ahead of it run once for each stream, whatever is measured.

    Attributes:
        walker: the blocks in the order in which they run.
        sensitivity: what errors of the sites' outputs do to the model's output; None: all alike.
    """

    def __init__(
        self,
        original: nn.Module,
        work: nn.Module,
        walker: BlockWalker,
        images: ImageBatches,
        store: ActivationStore,
        sensitivity: Sensitivity | None = None,
        drift: bool = True,
        weigh_tokens: bool = True,
    ) -> None:
        self._take_back, self._weigh_tokens = drift, weigh_tokens
        self.sensitivity = sensitivity
        self.original, self.work, self.walker = original, work, walker
        self.device = device_of(original)
        self._images, self._store, self._calls = images, store, CallStore(store)
        self.processes = processes_of(images)
        self.num_images = images.num_samples
        self._index = -1
        self._few: tuple[tuple[int, str, str, int], list[tuple[SiteInput, Tensor]]] | None = None
        self._sizes: list[int] = []
        self._starts: list[int] = []
        self._drifting: set[str] = set()

    def enter(self, index: int, sites: list[Site]) -> None:
        """Make block `index` the current one: run it in the original stream and keep its sites' targets."""
        self._index = index
        block = self.original.get_submodule(self.walker.blocks[index])
        for batch, (start, images) in enumerate(self._batches(read=not self._chained)):
            if index == 0:
                assert images is not None  # the first block is called with what the images become
                self._starts.append(start)
                self._sizes.append(len(images))
            call = self._called(batch, images, "original")
            if not self._chained:
                same = self.original is self.work or not self.walker.needed(index)
                self._calls.append(call if same else self._called(batch, images, "converted"))
            targets = run_original(call, block, self.original, sites)
            if batch == 0 and self._take_back:
                found = sorted(drift_sites(targets, sites))
                self._drifting = set(self.processes.agreed(partial(list, found)))
            self._keep_output("next-original", batch, targets.output)
            for site in sites:
                self._keep(f"target:{site.name}", batch, targets.branches[site.name])
                if site.name in self._drifting:
                    self._keep(f"stream:{site.name}", batch, targets.residuals[site.name])

    def inputs(
        self, site: Site, module: str, num_images: int | None = None, into: Sequence[Sums] = ()
    ) -> Iterator[tuple[SiteInput, Tensor]]:
        """What `module` of `site` is called with in the converted stream, and the site's target, batch by batch.

        Args:
            num_images: the first images only, rounded up to whole groups; None for all.
            into: the statistics that the caller fills. After the last batch they are summed over the processes that
                share the images.

        Yields:
            the input, and `[output | output + drift]` `(..., 2 * channels)`: the original's branch output, without and
            with what the residual stream has drifted from the original's; channels last whatever the block's layout.
        """
        yield from self._own_inputs(site, module, num_images)
        if self.processes.several:
            for statistics in into:
                statistics.total_over(self.processes)

    def _own_inputs(self, site: Site, module: str, num_images: int | None) -> Iterator[tuple[SiteInput, Tensor]]:
        """Those of the images of this process."""
        if num_images is None:
            yield from self._run_inputs(site, module, None)
            return
        key = (self._index, site.name, module, num_images)
        if self._few is None or self._few[0] != key:  # choices look at the same few images several times
            self._few = key, list(self._run_inputs(site, module, num_images))
        yield from self._few[1]

    def _run_inputs(self, site: Site, module: str, num_images: int | None) -> Iterator[tuple[SiteInput, Tensor]]:
        block = self.work.get_submodule(self.walker.blocks[self._index])
        wanted = self.num_images if num_images is None else min(whole_groups(num_images), self.num_images)
        for batch, (start, images) in enumerate(self._batches(read=self._cuts(wanted))):
            stop = min(start + self._sizes[batch], wanted)
            if start >= stop:
                break
            count = stop - start
            call = self._call(batch, images, count)
            parts = Parts.of(start, stop, self.num_images)
            got = run_to(call, block, self.work, module, site.norm if site.name in self._drifting else None, parts)
            target = self._fetch(f"target:{site.name}", batch)
            target = target[: len(target) * count // self._sizes[batch]]
            drifted = target
            if got.residual is not None:
                stream = self._fetch(f"stream:{site.name}", batch)
                drifted = target + stream[: len(target)] - got.residual
            if self.sensitivity is not None and self._weigh_tokens:
                got.weights = self.sensitivity.weights(site.name, start, stop)
            yield got, torch.cat((target, drifted), dim=site.channel_dim).movedim(site.channel_dim, -1)
        trim_heap()

    @property
    def returns_one_tensor(self) -> bool:
        """Whether the current block returns one tensor, as reconstruction needs it."""
        return isinstance(self.walker.outputs[self._index], Tensor)

    @property
    def current_block(self) -> nn.Module:
        """The current block of the converted model."""
        return self.work.get_submodule(self.walker.blocks[self._index])

    def example(self) -> Tensor:
        """What the current block is called with in the first batch."""
        return self._fetch(self._transformed, 0)

    def training_batch(self, num_images: int, generator: torch.Generator) -> tuple[BlockBatch | None, int]:
        """Random images, none held out, of a random group: the block's call in the converted stream and its target.

        Of several processes each gets those that it has, or none; beside them how many all have.
        """
        group = int(torch.randint(whole_groups(self.num_images) // GROUP, (1,), generator=generator))
        size = group_size(group, self.num_images)
        usable = torch.randperm(max(size - held_out(size), 1), generator=generator)[:num_images]
        return self._block_batch([group * GROUP + place for place in usable.tolist()]), len(usable)

    def held_out_batches(self) -> Iterator[BlockBatch]:
        """The held-out images, those of a batch at a time (all images where none are held out)."""
        for start, size in zip(self._starts, self._sizes, strict=True):
            chosen = [i for i in range(start, start + size) if self.num_images == 1 or is_held_out(i, self.num_images)]
            if chosen and (batch := self._block_batch(chosen)) is not None:
                yield batch

    def _block_batch(self, images: list[int]) -> BlockBatch | None:
        """Some of the images, as far as they are this process's."""
        places = zip(self._starts, self._sizes, strict=True)
        own = {place for start, size in places for place in range(start, start + size)}
        images = [image for image in images if image in own]
        if not images:
            return None
        others = self.walker.others(self._index) if self._chained else self._calls.others(-1, self.device)
        return BlockBatch(
            BlockCall(self._rows(self._transformed, images), *others), self._rows("next-original", images)
        )

    def _rows(self, kind: str, images: list[int]) -> Tensor:
        """What was kept for some of the images, in the order given."""
        kept: dict[int, Tensor] = {}
        found = []
        for image in images:
            batch = bisect_right(self._starts, image) - 1
            if batch not in kept:
                kept[batch] = self._store.get(kind, batch)
            found.append(kept[batch][image - self._starts[batch]])
        return torch.stack(found).to(self.device)

    def root(self, site: Site) -> Tensor | None:
        """By what errors of a site's output are weighted, `(channels, channels)`; None: all channels alike."""
        return None if self.sensitivity is None else self.sensitivity.root(site.name)

    def loss_scale(self, site: Site) -> float:
        """Expected squared change of the model's output per image for a mean squared error of one at every token."""
        return 1.0 if self.sensitivity is None else self.sensitivity.scale(site.name)

    def leave(self, sites: list[Site]) -> None:
        """Run the current block, converted by now, in the converted stream; its output is the next block's input."""
        block = self.work.get_submodule(self.walker.blocks[self._index])
        for batch in range(len(self._starts)):
            output = self._call(batch).run(block)
            for done in self.walker.needed(self._index):
                if self.walker.last_use(done) == self._index:
                    for stream in ("converted", "original"):
                        self._drop_output(_output(stream, done), batch, done)
            self._keep_output(_output("converted", self._index), batch, output)
            original = self._fetch_output("next-original", batch, self._index)
            self._keep_output(_output("original", self._index), batch, original)
            self._drop_output("next-original", batch, self._index)
            for site in sites:
                self._store.drop(f"target:{site.name}", batch)
                self._store.drop(f"stream:{site.name}", batch)
        self._calls.clear()
        trim_heap()

    def _batches(self, read: bool) -> Iterator[tuple[int, Tensor | None]]:
        """The place of each batch's first image among all, with the images where they are wanted."""
        if read:
            yield from ((start, images.to(self.device)) for start, images in placed(self._images))
        else:
            yield from ((start, None) for start in self._starts)

    def _cuts(self, wanted: int) -> bool:
        """Whether the first `wanted` images end within a batch of calls that were kept: part of one is made again."""
        places = zip(self._starts, self._sizes, strict=True)
        return not self._chained and any(start < wanted < start + size for start, size in places)

    def _call(self, batch: int, images: Tensor | None = None, count: int | None = None) -> BlockCall:
        """What the current block is called with in the converted stream for a batch, or its first `count` images."""
        if not self._chained and count in (None, self._sizes[batch]):
            return self._calls.get(batch, self.device)
        return self._called(batch, images, "converted", count)

    def _called(self, batch: int, images: Tensor | None, stream: str, count: int | None = None) -> BlockCall:
        """The same in a stream from what blocks before returned, and from the images where the layers ahead run."""
        needed = self.walker.needed(self._index)
        outputs = {block: self._fetch_output(_output(stream, block), batch, block, count) for block in needed}
        return self.walker.enter(self._index, None if images is None else images[:count], outputs)

    @property
    def _chained(self) -> bool:
        """Whether the current block is called with what the block before it returned; other calls are kept."""
        return self.walker.chained(self._index)

    @property
    def _transformed(self) -> str:
        """Key of what the current block transforms in the converted stream."""
        return _output("converted", self._index - 1) if self._chained else X

    def _keep(self, kind: str, batch: int, tensor: Tensor) -> None:
        self._store.put(kind, batch, tensor.detach().cpu())

    def _fetch(self, kind: str, batch: int) -> Tensor:
        return self._store.get(kind, batch).to(self.device)

    def _keep_output(self, kind: str, batch: int, output: Output) -> None:
        for place, tensor in enumerate(tensors_of(output)):
            self._keep(_part(kind, place), batch, tensor)

    def _drop_output(self, kind: str, batch: int, index: int) -> None:
        for place, _ in enumerate(tensors_of(self.walker.outputs[index])):
            self._store.drop(_part(kind, place), batch)

    def _fetch_output(self, kind: str, batch: int, index: int, count: int | None = None) -> Output:
        """What block `index` returned, as it was kept, of all images of a batch or of the first `count`."""
        tensors = (self._fetch(_part(kind, place), batch) for place in itertools.count())
        size = self._sizes[batch]
        return rebuilt(self.walker.outputs[index], (t[: len(t) * (count or size) // size] for t in tensors))


def _output(stream: str, block: int) -> str:
    """Key of what a block returned in a stream."""
    return f"{stream}-of-{block}"


def _part(kind: str, place: int) -> str:
    """Key of the tensor at a place among those that a block returns."""
    return f"{kind}-{place}" if place else kind
