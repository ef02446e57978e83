"""How much faster compacted models run than the MACs say: whole models against timm's, interleaved, as a table.

    python benchmarks/speed.py --batch-sizes 1 16 --dtypes float32 bfloat16 --threads 1
    python benchmarks/speed.py --device cuda --batch-sizes 1 16 128 --dtypes float32 bfloat16 --runs eager graphs
    python benchmarks/speed.py --models CHECKPOINT --plans 0.6 --images IMAGES.tar --runs eager onnxruntime --profile

Models by timm's name have random weights: the pair is made from them alone, a budget from noise, so that shapes are
those of a real job and nothing else is. The baseline is the faster of timm's fused and unfused attention, in one run
with the compacted model; *implied* is what the MACs promise, *kept* the share of it that arrives.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from frontier_methods import torch_pruning
from speed_profile import spent
from torch import Tensor, nn

import vitcompact
from vitcompact.data import CalibrationImages, DataOptions, ImageBatches, from_tensor, resolve_input
from vitcompact.models.cost import count
from vitcompact.options.selection import Only
from vitcompact.options.shared import Backend

MODELS: dict[str, dict[str, Any]] = {
    "deit_small_patch16_224": {},
    "deit_base_patch16_224": {},
    "vit_small_patch14_dinov2": {"img_size": 518, "num_classes": 0},
    "pvt_v2_b2": {},
    "nextvit_small": {},
    "swin_tiny_patch4_window7_224": {},
}
PAIRS: dict[str, Only | None] = {"pair": None, "pair-heads": "heads", "pair-ffn": "ffn"}
"""The paper's pair, and each of its two alone."""
NOISE = 96
PEER = "torch-pruning-"
RUNS: dict[str, Backend] = {
    "eager": "torch",
    "graphs": "torch",
    "compiled": "compile",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
}
"""Ways to run both models, and what `vitcompact.bench` calls them; graphs are CUDA's."""


def load(name: str) -> nn.Module:
    """A checkpoint, or a timm model with random weights."""
    if Path(name).exists():
        return vitcompact.load_source(name).model.float().eval()
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, **MODELS.get(name, {}))
    return model.eval()


def compacted(model: nn.Module, plan: str, images: ImageBatches | None, device: str) -> nn.Module:
    """`model` after the pair, half of it or a budget of MACs, folded, or after Torch-Pruning; on the CPU."""
    if plan.startswith(PEER):
        return torch_pruning.shapes(model, float(plan.removeprefix(PEER)))
    model = model.to(device)
    if plan in PAIRS:
        made = vitcompact.convert(model, ratio=0.5, rank_ratio=0.5, only=PAIRS[plan], images=None)
    else:
        size = resolve_input(model).input_size
        noise = from_tensor(torch.randn(NOISE, *size, generator=torch.Generator().manual_seed(0)), 16)
        made = vitcompact.convert(model, target_macs=float(plan), images=images or noise, device=device)
    model.cpu()
    return vitcompact.fold(made.cpu())


def unfused(model: nn.Module) -> nn.Module | None:
    """`model` with timm's plain attention, None where it has no other."""
    plain = copy.deepcopy(model)
    fused = [module for module in plain.modules() if getattr(module, "fused_attn", False)]
    for module in fused:
        module.__dict__["fused_attn"] = False
    return plain if fused else None


class Graphed(nn.Module):
    """A model whose pass is recorded as a CUDA graph, one for each shape, and replayed: no kernel waits for Python."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.pretrained_cfg = model, model.pretrained_cfg
        self.graphs: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Logits, in a tensor that the next call overwrites."""
        if images.shape not in self.graphs:
            given, aside = images.clone(), torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(3):
                    self.model(given)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = self.model(given)
            self.graphs[images.shape] = graph, given, out
        graph, given, out = self.graphs[images.shape]
        given.copy_(images)
        graph.replay()
        return out


def rows(small: nn.Module, model: nn.Module, implied: float, run: str, **how: Any) -> Iterator[str]:
    """The cells of each batch size, against whichever form of the baseline is faster."""
    form = Graphed if run == "graphs" else nn.Module.eval
    fused = vitcompact.bench(form(small), form(model), backend=RUNS[run], **how).batches
    plain_model = unfused(model) if run == "eager" else None
    plain = fused if plain_model is None else vitcompact.bench(small, plain_model, **how).batches
    for one, other in zip(fused, plain, strict=True):
        least = min(one, other, key=lambda result: result.speedup)
        low, high = least.speedup_interval
        told = run + ("" if least is one else ", baseline unfused")
        cells = [str(least.batch_size), told, f"{least.baseline.latency_ms.p50:.2f}", f"{least.speedup:.2f}"]
        yield " | ".join([*cells, f"{low:.2f} to {high:.2f}", f"{implied:.2f}", f"{least.speedup / implied:.2f}"])


def beside(small: nn.Module, model: nn.Module, batch_size: int, dtype: torch.dtype) -> str:
    """Milliseconds of both models by kind of operation, the original's first."""
    images = torch.randn(batch_size, *resolve_input(model).input_size, dtype=dtype)
    before, after = (spent(copy.deepcopy(each).to(dtype), images) for each in (model, small))
    return ", ".join(f"{kind} {before[kind]:.1f} to {after[kind]:.1f}" for kind in before)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME", help="timm names or checkpoints")
    parser.add_argument(
        "--plans",
        nargs="+",
        default=["pair", "0.6"],
        metavar="PLAN",
        help=f"{', '.join(PAIRS)}, or a share of the MACs, or torch-pruning-SHARE",
    )
    parser.add_argument("--images", metavar="DIR", help="calibration images for budgets; default: noise")
    parser.add_argument("--num-images", type=int, default=NOISE, help="of those, as many as there are of noise")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--runs", nargs="+", default=["eager"], choices=RUNS, help="graphs are CUDA's")
    parser.add_argument("--profile", action="store_true", help="before each eager cell, where the time of a pass goes")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--max-seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    logging.getLogger("vitcompact").setLevel(logging.ERROR)
    print("| model | plan | dtype | batch | run | baseline ms | speed-up | 95 % | implied | kept |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in args.models:
        model = load(name)
        asked = DataOptions(data_dir=args.images, num_samples=args.num_images)
        images = CalibrationImages(model, asked) if args.images else None
        whole = count(model, resolve_input(model).input_size).macs
        for plan in args.plans:
            small = compacted(copy.deepcopy(model), plan, images, args.device)
            implied = whole / count(small, resolve_input(model).input_size).macs
            for dtype, run in itertools.product(args.dtypes, args.runs):
                how = {"batch_sizes": args.batch_sizes, "device": args.device, "dtype": getattr(torch, dtype)}
                limits = {"num_pairs": args.pairs, "max_seconds": args.max_seconds}
                if run in ("onnxruntime", "openvino"):
                    if dtype != "float32":
                        continue
                    del how["dtype"]
                if args.profile and run == "eager":
                    for size in args.batch_sizes:
                        told = beside(small, model, size, how["dtype"])
                        print(f"| {Path(name).name} | {plan} | {dtype} | {size} | ms: {told} |", flush=True)
                for row in rows(small, model, implied, run, **how, **limits):
                    print(f"| {Path(name).name} | {plan} | {dtype} | {row} |", flush=True)


if __name__ == "__main__":
    main()
