"""The main job on a real checkpoint, step by step, with the figures of docs/results.md.

    python benchmarks/main_job.py CKPT --train TRAIN.tar --val VAL.tar [--max-minutes 10] [--skip-finetune]

Prints top-1 of the original, of copied heads with plain SVD, straight after convert, after finetune and after fold;
parameters, MACs, the time of convert in plain forward passes, fold parity, and speed-up from one interleaved run.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import nn

import vitcompact
from vitcompact.analysis import count
from vitcompact.benchmarking import bench
from vitcompact.data import CalibrationImages, DataOptions, evaluation_batches, resolve_input, training_loader
from vitcompact.evaluation import evaluate
from vitcompact.training import TrainOptions


def forward_seconds(model: nn.Module, images: CalibrationImages) -> float:
    began = time.perf_counter()
    with torch.no_grad():
        for batch in images:
            model(batch)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--train", required=True)
    parser.add_argument("--val", required=True)
    parser.add_argument("--num-samples", type=int, default=512)
    parser.add_argument("--max-minutes", type=float, default=10.0)
    parser.add_argument("--skip-finetune", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    original = vitcompact.load_source(args.checkpoint).model
    size = resolve_input(original).input_size
    data = DataOptions(data_dir=args.train, num_samples=args.num_samples, seed=args.seed)
    held_out = DataOptions(data_dir=args.val)

    def report(name: str, model: nn.Module, **more: object) -> None:
        cost = count(model, size)
        score = evaluate(model, evaluation_batches(model, held_out), reference=original)
        rest = "  ".join(f"{key} {value}" for key, value in more.items())
        print(
            f"{name:24} top-1 {score.top1:6.2f} %  agreement {score.agreement:.4f}  cosine {score.cosine:.4f}  "
            f"params {cost.params / 1e6:6.2f} M  MACs {cost.macs / 1e9:6.3f} G  {rest}",
            flush=True,
        )

    images = CalibrationImages(original, data)
    forward_seconds(original, images)
    before = forward_seconds(original, images)
    began = time.perf_counter()
    compact = vitcompact.convert(original, images=images, seed=args.seed)
    seconds = time.perf_counter() - began
    after = forward_seconds(original, images)
    report("original", original)
    report("copy + plain SVD", vitcompact.convert(original, images=images, init="svd", hallucinate="copy"))
    report("convert", compact, time=f"{seconds:.1f} s = {2 * seconds / (before + after):.2f} forward passes")
    if not args.skip_finetune:
        loader = training_loader(original, DataOptions(data_dir=args.train, seed=args.seed))
        options = TrainOptions(max_minutes=args.max_minutes, seed=args.seed)
        result = vitcompact.finetune(compact, original, loader, options=options)
        compact = result.model
        report("finetune", compact, steps=result.steps, minutes=f"{result.seconds / 60:.1f}")
    folded = vitcompact.fold(compact, images=next(iter(images))[:16])
    report("fold", folded, parity=folded.vitcompact_parity)
    macs = (count(folded, size).macs, count(original, size).macs)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        times = bench(folded, original, batch_sizes=(1, 8, 32), dtype=dtype, macs=macs)
        for batch in times.batches:
            low, high = batch.speedup_interval
            print(
                f"{name}, batch {batch.batch_size:3}: {batch.speedup:.3f}x ({low:.3f} to {high:.3f}), MAC ratio "
                f"{1 / (times.macs_ratio or 1):.3f}x, {batch.baseline.latency_ms.p50:.1f} -> "
                f"{batch.model.latency_ms.p50:.1f} ms, {batch.num_pairs} pairs; {times.backend}"
            )


if __name__ == "__main__":
    main()
