"""Interleaved timing of a model and its baseline."""

from vitcompact.bench.bench import bench
from vitcompact.bench.result import BatchResult, BenchResult, Latency, Side

__all__ = ["BatchResult", "BenchResult", "Latency", "Side", "bench"]
