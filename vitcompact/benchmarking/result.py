"""What a benchmark measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from vitcompact.benchmarking.timing import PairedTimes, quantile, speedup, speedup_interval
from vitcompact.errors import ThresholdError
from vitcompact.utils.text import columns, html_table

SCATTER = 0.03
"""A model against itself reads one within this."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one batch: median and 95th percentile."""

    p50: float
    p95: float


@dataclass(frozen=True)
class Side:
    """One of the two models at one batch size; `samples_per_sec` follows from the median latency."""

    latency_ms: Latency
    samples_per_sec: float
    peak_memory_bytes: int | None

    @classmethod
    def of(cls, seconds: list[float], batch_size: int, peak_memory_bytes: int | None) -> Side:
        median = quantile(seconds, 0.5)
        latency = Latency(1e3 * median, 1e3 * quantile(seconds, 0.95))
        return cls(latency, batch_size / max(median, 1e-12), peak_memory_bytes)


@dataclass(frozen=True)
class BatchResult:
    """Both models at one batch size.

    Attributes:
        batch_size: images a batch.
        num_pairs: timed pairs.
        model: the model.
        baseline: what it is compared with.
        speedup: median over the pairs of baseline time over model time.
        speedup_interval: its 95 % bootstrap interval.
    """

    batch_size: int
    num_pairs: int
    model: Side
    baseline: Side
    speedup: float
    speedup_interval: tuple[float, float]

    @classmethod
    def of(cls, batch_size: int, times: PairedTimes, memory: tuple[int | None, int | None], seed: int) -> BatchResult:
        """From the times of both sides, and the peak memory (model, baseline)."""
        return cls(
            batch_size=batch_size,
            num_pairs=len(times.model),
            model=Side.of(times.model, batch_size, memory[0]),
            baseline=Side.of(times.baseline, batch_size, memory[1]),
            speedup=speedup(times),
            speedup_interval=speedup_interval(times, seed),
        )

    def to_json(self) -> dict[str, Any]:
        own = asdict(self.model)
        rest = {"speedup": self.speedup, "speedup_interval": list(self.speedup_interval)}
        return {
            "batch_size": self.batch_size,
            "num_pairs": self.num_pairs,
            **own,
            "baseline": asdict(self.baseline),
            **rest,
        }


@dataclass(frozen=True)
class LayerTime:
    """One compacted layer against its original, run on the same tokens.

    Attributes:
        name: module path.
        ms, baseline_ms: median milliseconds of one batch.
        speedup: median over the rounds of the original's time over the layer's.
        macs_ratio: MACs of the layer over those of its original, padding and biases left out.
    """

    name: str
    ms: float
    baseline_ms: float
    speedup: float
    macs_ratio: float

    @property
    def slower(self) -> bool:
        """Whether the layer takes longer than its original, by more than what timing scatters."""
        return self.speedup < 1 - SCATTER

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "slower": self.slower}


@dataclass(frozen=True)
class BenchResult:
    """Both models at all batch sizes that fitted; the largest of them is the one quoted first.

    Attributes:
        batches: results by batch size, ascending.
        input_size: (channels, height, width).
        backend: how the model ran: device, precision, threads, attention backends.
        baseline_backend: the same for the baseline.
        macs: multiply-accumulates an image of the model and of the baseline, where the caller gave them.
        notes: batch sizes left out and why, and anything that qualifies the figures.
        layers: compacted layers one by one, where they were asked for.
    """

    batches: tuple[BatchResult, ...]
    input_size: tuple[int, int, int]
    backend: str
    baseline_backend: str
    macs: tuple[int, int] | None = None
    notes: tuple[str, ...] = field(default=())
    layers: tuple[LayerTime, ...] = field(default=())

    @property
    def headline(self) -> BatchResult:
        """The largest batch size measured."""
        return self.batches[-1]

    @property
    def speedup(self) -> float:
        """Speed-up at the largest batch size measured."""
        return self.headline.speedup

    @property
    def macs_ratio(self) -> float | None:
        """MACs of the model over those of the baseline."""
        return None if self.macs is None else self.macs[0] / self.macs[1]

    def __repr__(self) -> str:
        top, (low, high) = self.headline, self.headline.speedup_interval
        times = f"{top.model.latency_ms.p50:.4g} ms, baseline {top.baseline.latency_ms.p50:.4g} ms"
        ratio = "" if self.macs_ratio is None else f", {self.macs_ratio:.3g} of the MACs"
        what = f"{self.speedup:.3f}x ({low:.3f} to {high:.3f}) at batch size {top.batch_size}: {times}{ratio}"
        return f"<BenchResult {what}; {self.backend}>"

    def _repr_html_(self) -> str:
        rows = []
        for each in self.batches:
            low, high = each.speedup_interval
            times = (f"{side.latency_ms.p50:.2f}" for side in (each.baseline, each.model))
            rows.append((str(each.batch_size), *times, f"{each.speedup:.3f}", f"{low:.3f} to {high:.3f}"))
        return html_table(repr(self)[1:-1], ("batch size", "baseline ms", "ms", "times as fast", "95 % interval"), rows)

    def __str__(self) -> str:
        """One line for each batch size, and the notes."""
        head = ("batch size", "speed-up", "95 % interval", "ms", "baseline ms", "images/s")
        rows = [
            (
                *(str(each.batch_size), f"{each.speedup:.3f}", "{:.3f} to {:.3f}".format(*each.speedup_interval)),
                *(f"{side.latency_ms.p50:.4g}" for side in (each.model, each.baseline)),
                f"{each.model.samples_per_sec:.4g}",
            )
            for each in self.batches
        ]
        return "\n".join([self.backend, columns([head, *rows]), *self.notes])

    def check_speedup(self, minimum: float) -> None:
        """Raises ThresholdError where the speed-up at the largest batch size is below `minimum`."""
        if self.speedup < minimum:
            low, high = self.headline.speedup_interval
            raise ThresholdError(
                f"speed-up {self.speedup:.3f} at batch size {self.headline.batch_size} "
                f"(95 % interval {low:.3f} to {high:.3f}) is below the {minimum:g} asked for"
            )

    def to_json(self) -> dict[str, Any]:
        """The keys of `bench --json`: those of the largest batch size on top, and all sizes in `batches`."""
        top = self.headline.to_json()
        top["baseline"]["backend"] = self.baseline_backend
        return {
            **top,
            "macs_ratio": self.macs_ratio,
            "backend": self.backend,
            "input_size": list(self.input_size),
            "batches": [batch.to_json() for batch in self.batches],
            "notes": list(self.notes),
            **({"layers": [layer.to_json() for layer in self.layers]} if self.layers else {}),
        }
