"""Interleaved timing of a model and its baseline."""

from vitcompact.benchmarking.bench import bench
from vitcompact.benchmarking.result import BatchResult, BenchResult, Latency, Side

__all__ = ["BatchResult", "BenchResult", "Latency", "Side", "bench"]
