"""The whole job on a bundled model and bundled real images, a budget beside the paper's pair of the same MACs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitcompact.analysis import Cost, count
from vitcompact.attached import results
from vitcompact.benchmarking import beside_first
from vitcompact.benchmarking.timing import PairedTimes, quantile, speedup, speedup_interval
from vitcompact.checkpoint import check_out, load_source, save
from vitcompact.data import CalibrationImages, DataOptions, evaluation_batches, resolve_input, training_loader
from vitcompact.data.augment import Augment
from vitcompact.evaluation import evaluate
from vitcompact.folding import fold
from vitcompact.surgery import convert
from vitcompact.training import TrainOptions, finetune
from vitcompact.utils.files import claimed
from vitcompact.utils.progress import Progress, silent

BATCH_SIZE = 64
TRAINING = TrainOptions(steps=100)
NUM_ROUNDS = 30
NAIVE = "copied heads, plain SVD"
PAIR, TUNED_PAIR = "the pair", "the pair, finetuned and folded"
BUDGET, FOLDED = "a budget, nothing trained", "the budget, folded"


@dataclass(frozen=True)
class Stage:
    """One row of the demo's table; `seconds` is how long it took, the rest is measured on the model after it.

    `top1` is in percent on the held-out images, `latency_ms` the median for a batch of 64 (of the original and of what
    is folded, all timed in the same rounds).
    """

    stage: str
    seconds: float
    top1: float | None
    params: int
    macs: int
    latency_ms: float | None = None


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured, and where the folded model was written.

    Attributes:
        stages: original; the naive way; the pair, then finetuned and folded; a budget of the same MACs, then folded.
        speedup: median over rounds in which each model ran once, with its 95 % interval: on a busy machine not quite
            the ratio of the two medians in `stages`.
        pair_speedup: of the pair, folded.
    """

    stages: tuple[Stage, ...]
    speedup: float
    speedup_interval: tuple[float, float]
    macs_ratio: float
    rel_diff: float
    pair_speedup: float
    pair_speedup_interval: tuple[float, float]
    out: Path

    def to_json(self) -> dict[str, Any]:
        """Keys: stages, speedup, speedup_interval, macs_ratio, rel_diff, pair_speedup and its interval, out."""
        return {**asdict(self), "stages": [asdict(stage) for stage in self.stages], "out": str(self.out)}


def run(workdir: str | Path, progress: Progress = silent, *, overwrite: bool = False, seed: int = 0) -> DemoResult:
    """Run the demo on one thread and write the folded model to `workdir/demo`.

    Raises:
        UsageError: `workdir/demo` exists and `overwrite` is off, or nothing can be written there.
    """
    out = check_out(Path(workdir) / "demo", overwrite=overwrite)
    with claimed(out), _one_thread(), as_file(files("vitcompact.demo").joinpath("assets")) as assets:
        return _Demo(assets, progress, seed).run(out, overwrite)


class _Demo:
    def __init__(self, assets: Path, progress: Progress, seed: int) -> None:
        self.progress, self.seed = progress, seed
        self.source = load_source(str(assets / "vit_digits"))
        self.train = DataOptions(data_dir=assets / "train.tar", batch_size=BATCH_SIZE, seed=seed, workers=0)
        self.test = DataOptions(data_dir=assets / "test.tar", batch_size=256, workers=0)
        self.size = resolve_input(self.source.model).input_size

    def run(self, out: Path, overwrite: bool) -> DemoResult:
        original = self.source.model
        images = CalibrationImages(original, self.train)
        before = self._stage("original", original, time.monotonic())
        began = time.monotonic()
        naive = convert(original, images=images, init="svd", hallucinate="copy", seed=self.seed)
        copied = self._stage(NAIVE, naive, began)
        began = time.monotonic()
        pair = convert(original, images=images, seed=self.seed, progress=self.progress)
        paired = self._stage(PAIR, pair, began)
        began = time.monotonic()
        options = replace(TRAINING, seed=self.seed)
        # digits are not the same when mirrored, and all of a digit counts
        loader = training_loader(original, self.train, Augment(scale=(0.85, 1.0), ratio=(3 / 4, 4 / 3), hflip=0.0))
        pair = finetune(pair, original, loader, options=options, progress=self.progress).model
        pair = fold(pair, seed=self.seed)
        finetuned = self._stage(TUNED_PAIR, pair, began)
        began = time.monotonic()
        share = paired.macs / before.macs  # both may cost the same
        compact = convert(original, images=images, target_macs=share, seed=self.seed, progress=self.progress)
        converted = self._stage(BUDGET, compact, began)
        began = time.monotonic()
        folded = fold(compact, seed=self.seed)
        after = self._stage(FOLDED, folded, began)
        laps = self._times(original, pair, folded)
        first, second, last = (_timed(*each) for each in zip((before, finetuned, after), laps, strict=True))
        parity = results(folded).parity
        assert parity is not None  # fold leaves it
        result = DemoResult(
            (first, copied, paired, second, converted, last),
            speedup(laps[2]),
            speedup_interval(laps[2], self.seed),
            after.macs / before.macs,
            parity.rel_diff,
            speedup(laps[1]),
            speedup_interval(laps[1], self.seed),
            out,
        )
        save(folded, out, provenance=self.source.provenance, results=result.to_json(), overwrite=overwrite)
        return result

    def _times(self, *models: nn.Module) -> list[PairedTimes]:
        return beside_first(models, batch_size=BATCH_SIZE, num_rounds=NUM_ROUNDS, max_seconds=6)

    def _stage(self, name: str, model: nn.Module, began: float) -> Stage:
        seconds = time.monotonic() - began
        cost: Cost = count(model, self.size)
        score = evaluate(model, evaluation_batches(model, self.test))
        return Stage(name, round(seconds, 2), score.top1, cost.params, cost.macs)


@contextmanager
def _one_thread() -> Iterator[None]:
    """So small a model gains nothing from more, loses much where other programs hold cores (docs/results.md), and its
    figures depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _timed(stage: Stage, laps: PairedTimes) -> Stage:
    return replace(stage, latency_ms=1e3 * quantile(laps.model, 0.5))
