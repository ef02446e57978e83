"""Interleaved timing of a model and its baseline."""

from vitcompact.benchmarking.bench import bench, beside_first
from vitcompact.benchmarking.result import BatchResult, BenchResult, Latency, LayerTime, Side

__all__ = ["BatchResult", "BenchResult", "Latency", "LayerTime", "Side", "bench", "beside_first"]
