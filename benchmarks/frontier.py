"""Accuracy against measured speed: this project and what users would pick instead, on the same images.

    pip install torch-pruning matplotlib
    python benchmarks/frontier.py CKPT --calibration TRAIN.tar --judge VAL.tar --finetune-on TRAIN.tar \\
        --results frontier.jsonl
    python benchmarks/frontier.py --report --results frontier.jsonl --plot frontier

CKPT is any SOURCE of a plain ViT. One with a head is scored by top-1 on JUDGE, one without by its features against
the original's. Every method gets the same calibration images and, in the stage `finetuned`, the same label-free
distillation for the same time. Speed is an interleaved run against the original; it is not taken again after
fine-tuning where the shapes are the same.

Results are appended to a file of JSON lines as they are computed, by checkpoint, method, target, stage and seed; what
is there is not computed again, so the job can be run in pieces (--methods, --targets, --stages, --seeds). A method
that fails is reported and tried again next time. --report prints tables and draws the plots from that file.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from frontier_measure import Images, Judge, fine_tune, folded, measure_cost, measure_speed
from frontier_methods import METHODS, Calibration, UnreachableError
from frontier_records import Key, Records, add_results, check_results, read_entries
from frontier_report import draw, tables
from torch import nn

import vitcompact

STAGES = ("raw", "finetuned")


def main() -> int:
    args = _arguments()
    if args.report:
        entries = read_entries(args.results)
        print(tables(entries))
        if args.plot:
            for path in draw(entries, args.plot):
                print(f"drawn: {path}")
        return 0
    if args.threads:
        torch.set_num_threads(args.threads)
    original = vitcompact.load_source(args.checkpoint).model.float().eval()
    name = args.name or Path(str(args.checkpoint).removeprefix("local-dir:")).name
    records = Records(args.results[0], name, _settings(args))
    judge = Judge(original, Images.load(original, args.judge, args.num_judge, 0, shuffle=False))
    print(f"{name}: judging on {len(judge)} images, results in {args.results[0]}", flush=True)
    failed = 0
    if not records.has(Key(name, "original", 1.0, "raw", 0)):
        cost, scores = measure_cost(original, original), judge.scores(original)
        speed = measure_speed(original, original, args.batch_sizes, args.num_pairs)
        records.add(
            Key(name, "original", 1.0, "raw", 0), {**cost, "speed": speed, "scores": scores, "main": judge.main}
        )
    for seed in args.seeds:
        calibration = None
        for target in args.targets:
            for method in args.methods:
                keys = {stage: Key(name, method, target, stage, seed) for stage in args.stages}
                missing = [stage for stage, key in keys.items() if not records.has(key)]
                if not missing:
                    continue
                if calibration is None:
                    images = Images.load(original, args.calibration, args.num_images, seed, shuffle=True)
                    calibration = Calibration(images.images, images.labels, seed, args.reconstruct_steps)
                try:
                    _run(args, original, judge, calibration, records, {stage: keys[stage] for stage in missing})
                except Exception as error:  # one method must not cost the results of all others
                    failed += 1
                    print(f"FAILED {method} {target} seed {seed}: {type(error).__name__}: {error}", flush=True)
                    if args.verbose:
                        traceback.print_exc()
    return 1 if failed else 0


def _run(
    args: argparse.Namespace,
    original: nn.Module,
    judge: Judge,
    calibration: Calibration,
    records: Records,
    keys: dict[str, Key],
) -> None:
    """Build a method's module once, and measure it in the stages that are missing."""
    first = next(iter(keys.values()))
    began = time.perf_counter()
    try:
        module = METHODS[first.method].run(original, calibration, first.target)
    except UnreachableError as error:
        for key in keys.values():
            records.add(key, {"unreachable": str(error)})
        print(f"{first.method:26} {first.target:.2f}  unreachable: {error}", flush=True)
        return
    built: dict[str, Any] = {"build_seconds": time.perf_counter() - began, "main": judge.main}
    for stage, key in keys.items():
        if stage == "finetuned":
            module, trained = fine_tune(
                module,
                original,
                args.finetune_on or [args.calibration],
                minutes=args.max_minutes if args.steps is None else None,
                steps=args.steps,
                batch_size=args.finetune_batch_size,
                seed=calibration.seed,
            )
            built = {**built, "finetune": trained}
        ready = folded(module)
        cost, scores = measure_cost(ready, original), judge.scores(ready)
        twin = records.entries.get(replace(key, stage="raw"), {})  # training moves weights, not shapes
        same = twin.get("macs") == cost["macs"]
        speed = twin["speed"] if same else measure_speed(ready, original, args.batch_sizes, args.num_pairs)
        records.add(key, {**built, **cost, "speed": speed, "scores": scores})
        value = sum(scores[judge.main]) / len(scores[judge.main])
        print(
            f"{key.method:26} {key.target:.2f} {stage:10} seed {key.seed}  {judge.main} {value:.4f}  "
            f"MACs {cost['macs_ratio']:.3f}  speed-up {speed[-1]['speedup']:.3f}",
            flush=True,
        )


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What has to be the same for entries of one checkpoint to be comparable."""
    names = ("num_images", "num_judge", "batch_sizes", "num_pairs", "reconstruct_steps", "finetune_batch_size")
    values = {name: getattr(args, name) for name in names}
    tuned = {"max_minutes": args.max_minutes} if args.steps is None else {"steps": args.steps}
    paths = {"calibration": args.calibration, "judge": args.judge}
    images = {name: Path(path).name for name, path in paths.items()}
    trained_on = [Path(path).name for path in args.finetune_on or [args.calibration]]
    return {**values, **tuned, **images, "finetune_on": trained_on, "threads": torch.get_num_threads()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="any SOURCE of a plain ViT")
    parser.add_argument("--name", help="what it is called in the results; by default its last path component")
    parser.add_argument("--calibration", help="images to calibrate on: a folder or a .tar")
    parser.add_argument("--judge", help="images to score on")
    parser.add_argument("--finetune-on", nargs="+", help="images to distil on, in turn; by default the calibration set")
    add_results(parser)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--targets", nargs="+", type=float, default=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4], help="MACs kept")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--num-images", type=int, default=512, help="calibration images")
    parser.add_argument("--num-judge", type=int, help="images to score on; by default all")
    parser.add_argument("--reconstruct-steps", type=int, default=300, help="Adam steps a block")
    parser.add_argument("--max-minutes", type=float, default=15.0, help="wall-clock minutes of fine-tuning")
    parser.add_argument("--steps", type=int, help="steps of fine-tuning instead of minutes")
    parser.add_argument("--finetune-batch-size", type=int, default=64)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[8, 32], help="timed; the largest is plotted")
    parser.add_argument("--num-pairs", type=int, default=30, help="timed pairs for each batch size")
    parser.add_argument("--threads", type=int, help="torch threads; by default its own choice")
    parser.add_argument("--plot", type=Path, help="with --report: draw PLOT-CHECKPOINT.png and .svg")
    parser.add_argument("--verbose", action="store_true", help="tracebacks of methods that fail")
    args = parser.parse_args()
    if not args.report and not (args.checkpoint and args.calibration and args.judge):
        parser.error("CKPT, --calibration and --judge are needed (or --report)")
    check_results(parser, args)
    args.stages = [stage for stage in STAGES if stage in args.stages]
    return args


if __name__ == "__main__":
    sys.exit(main())
