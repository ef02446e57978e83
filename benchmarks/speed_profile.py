"""Where the time of a pass goes, by kind of operation: what explains a speed-up that is smaller than the MACs say."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "products": ("addmm", "mm", "mkldnn_linear"),
    "attention": ("scaled_dot_product", "bmm", "softmax"),
    "convolutions": ("convolution", "conv2d"),
    "copies": ("copy_", "cat", "clone"),
}
"""Names of torch's operations by what they do; an attention core is products of batches (`bmm`) or one fused call."""
REST = "all else"


def kind_of(operation: str) -> str:
    """`aten::baddbmm` is `attention`; norms, activations and sums are all else."""
    name = operation.removeprefix("aten::").lstrip("_")
    for kind in ("attention", "convolutions", "copies", "products"):
        if any(part in name for part in KINDS[kind]):
            return kind
    return REST


def spent(model: nn.Module, images: Tensor, passes: int = 5) -> dict[str, float]:
    """Milliseconds of a pass on the CPU by kind, as torch's profiler sees them; Python's share is not in it."""
    with torch.inference_mode():
        for _ in range(2):
            model(images)
        with profile(activities=[ProfilerActivity.CPU]) as record:
            for _ in range(passes):
                model(images)
    times: dict[str, float] = defaultdict(float)
    for row in record.key_averages():
        times[kind_of(row.key)] += row.self_cpu_time_total / 1e3 / passes
    return {kind: times[kind] for kind in (*KINDS, REST)}
