"""What the frontier benchmark measures of a module: scores image by image, cost, speed; and the images it needs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vitcompact
from vitcompact.analysis import count
from vitcompact.benchmarking import bench
from vitcompact.data import DataOptions, evaluation_batches, resolve_input, training_loader
from vitcompact.models.forward import features, logits, num_classes
from vitcompact.plans.schema import Plan
from vitcompact.training import TrainOptions


@dataclass(frozen=True)
class Images:
    """Images and labels in memory: normalised `(n, channels, height, width)`, int64 `(n,)`, -1 for no label."""

    images: Tensor
    labels: Tensor

    @classmethod
    def load(cls, model: nn.Module, path: str, num_images: int | None, seed: int, *, shuffle: bool) -> Images:
        """A seeded subset, prepared for `model`; shuffled, since data sets are sorted by class."""
        options = DataOptions(data_dir=path, num_samples=num_images, seed=seed)
        images, labels = zip(*evaluation_batches(model, options), strict=True)
        loaded = cls(torch.cat(images), torch.cat(labels))
        if not shuffle:
            return loaded
        order = torch.randperm(len(loaded.images), generator=torch.Generator().manual_seed(seed))
        return cls(loaded.images[order], loaded.labels[order])


class Judge:
    """Scores modules against the original on the same images, one value an image for each score.

    With a head: `top1` (is the first guess right) and `agreement` (is it the original's). Without: `cosine` of the
    pooled features, `patch_cosine` (mean over patches) and `neighbour` (is the nearest other image the original's).
    """

    def __init__(self, original: nn.Module, images: Images, batch_size: int = 50) -> None:
        self.has_head = num_classes(original) > 0
        self.main = "top1" if self.has_head else "cosine"
        self._images, self._batch_size = images, batch_size
        self._wanted = list(self._outputs(original))

    def __len__(self) -> int:
        return len(self._images.images)

    @torch.inference_mode()
    def scores(self, model: nn.Module) -> dict[str, list[float]]:
        """Each score's values in the order of the images."""
        pairs = list(zip(self._outputs(model.eval()), self._wanted, strict=True))
        if self.has_head:
            guesses, wanted = (torch.cat([pair[side][0] for pair in pairs]).argmax(dim=1) for side in (0, 1))
            return {
                "top1": (guesses == self._images.labels).int().tolist(),
                "agreement": (guesses == wanted).int().tolist(),
            }
        found: dict[str, list[float]] = {"cosine": [], "patch_cosine": []}
        for own, other in pairs:
            found["cosine"] += F.cosine_similarity(own[0], other[0], dim=-1).tolist()
            found["patch_cosine"] += F.cosine_similarity(own[1], other[1], dim=-1).mean(dim=1).tolist()
        nearest = [_nearest(torch.cat([pair[side][0] for pair in pairs])) for side in (0, 1)]
        rounded = {name: [round(value, 5) for value in values] for name, values in found.items()}
        return {**rounded, "neighbour": (nearest[0] == nearest[1]).int().tolist()}

    @torch.inference_mode()
    def _outputs(self, model: nn.Module) -> Iterator[tuple[Tensor, ...]]:
        for batch in self._images.images.split(self._batch_size):
            if self.has_head:
                yield (logits(model, batch),)
            else:
                pooled, patches = features(model, batch)
                assert patches is not None
                yield pooled, patches


def _nearest(rows: Tensor) -> Tensor:
    rows = F.normalize(rows, dim=1)
    return (rows @ rows.T).fill_diagonal_(-torch.inf).argmax(dim=1)


def folded(module: nn.Module) -> nn.Module:
    """Our modules in their folded form; others are plain already."""
    plan = getattr(module, "vitcompact_plan", None)
    return vitcompact.fold(module) if isinstance(plan, Plan) and plan.layers else module.eval()


def measure_cost(model: nn.Module, original: nn.Module) -> dict[str, Any]:
    """Parameters and MACs, absolute and as shares of the original's."""
    size = resolve_input(original).input_size
    own, whole = count(model, size), count(original, size)
    return {
        "params": own.params,
        "macs": own.macs,
        "params_ratio": own.params / whole.params,
        "macs_ratio": own.macs / whole.macs,
    }


def measure_speed(
    model: nn.Module, original: nn.Module, batch_sizes: Sequence[int], num_pairs: int
) -> list[dict[str, Any]]:
    """Interleaved with the original, by batch size, ascending; no time limit, so all pairs are measured."""
    result = bench(model, original, batch_sizes=batch_sizes, num_pairs=num_pairs, max_seconds=None)
    kept = ("batch_size", "num_pairs", "speedup", "speedup_interval", "latency_ms")
    return [{name: batch.to_json()[name] for name in kept} for batch in result.batches]


class Alternating:
    """Training streams taken in turn, a batch each: how several data sets are trained on at once."""

    def __init__(self, streams: Sequence[Any]) -> None:
        self._streams = streams
        self.batch_size = min(stream.batch_size for stream in streams)
        self.num_samples = sum(stream.num_samples for stream in streams)
        self.steps_per_epoch = sum(stream.steps_per_epoch for stream in streams)

    def batches(self, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        number = len(self._streams)
        sources = [
            stream.batches(start_step // number + (index < start_step % number))
            for index, stream in enumerate(self._streams)
        ]
        for step in range(start_step, 2**62):
            images, labels = next(sources[step % number])
            yield images[: self.batch_size], labels[: self.batch_size]


def fine_tune(
    model: nn.Module,
    original: nn.Module,
    paths: Sequence[str],
    *,
    minutes: float | None,
    steps: int | None,
    batch_size: int,
    seed: int,
) -> tuple[nn.Module, dict[str, Any]]:
    """`vitcompact.finetune` with its defaults, the same for every method; labels are not used.

    What merges tokens is trained as it merges, each token on the outputs of all that were merged into it.

    Returns:
        the trained module, and what is recorded of the run.
    """
    options = TrainOptions(max_minutes=minutes, steps=steps, seed=seed)
    loaders = [training_loader(original, DataOptions(data_dir=p, batch_size=batch_size, seed=seed)) for p in paths]
    stream = loaders[0] if len(loaders) == 1 else Alternating(loaders)
    began = time.process_time()
    result = vitcompact.finetune(model, original, stream, options=options)
    record = {name: getattr(result, name) for name in ("steps", "seconds", "lr", "best_step")}
    return result.model, {**record, "cpu_seconds": time.process_time() - began}
