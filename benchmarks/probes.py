"""What classes can be read off features after a method: k-NN and a linear layer on each model's own pooled features.

    python benchmarks/probes.py CKPT --calibration PHOTOS.tar --num-images 350 --fit TRAIN.tar --judge VAL.tar \\
        --results probes.jsonl
    python benchmarks/probes.py --report --results probes.jsonl

The methods are those of frontier.py, nothing is trained. Probes are those of `vitcompact eval --probe`; a model's
features are computed once for both. Results are appended to a file of JSON lines as frontier.py does, the original
among them as a method; what is there is not computed again. --report takes several files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from frontier_measure import Images, folded, measure_cost
from frontier_methods import METHODS, Calibration
from frontier_records import Key, Records, add_results, check_results, read_entries
from torch import Tensor, nn

import vitcompact
from vitcompact.data import DataOptions, evaluation_batches
from vitcompact.evaluation.probe import fitted_probe
from vitcompact.models.forward import features
from vitcompact.options.evaluation import Probe
from vitcompact.utils.intervals import paired_difference

PROBES: tuple[Probe, ...] = get_args(Probe)
ORIGINAL = "original"
K = 20


def main() -> int:
    args = _arguments()
    if args.report:
        print(table(read_entries(args.results)))
        return 0
    if args.threads:
        torch.set_num_threads(args.threads)
    original = vitcompact.load_source(args.checkpoint).model.float().eval()
    name = Path(args.checkpoint).name
    records = Records(args.results[0], name, _settings(args))
    asked = [] if args.skip_original else [(ORIGINAL, 1.0)]
    asked += [(method, target) for target in args.targets for method in args.methods]
    calibration = None
    for method, target in asked:
        key = Key(name, method, target, "raw", args.seed)
        if records.has(key):
            continue
        model = original
        if method != ORIGINAL:
            if calibration is None:
                images = Images.load(original, args.calibration, args.num_images, args.seed, shuffle=True)
                calibration = Calibration(images.images, images.labels, args.seed)
            model = folded(METHODS[method].run(original, calibration, target))
        scores = probed(model, args)
        records.add(key, {**measure_cost(model, original), "scores": scores})
        found = ", ".join(f"{probe} {sum(hits) / len(hits):.4f}" for probe, hits in scores.items())
        print(f"{method:20} {target:.2f} seed {args.seed}  {found}", flush=True)
    return 0


def probed(model: nn.Module, args: argparse.Namespace) -> dict[str, list[int]]:
    """By probe: whether the class read off each judging image's features is right."""
    fitted_on, labels = _features(model, args.fit, args.num_fit, args.batch_size)
    judged, wanted = _features(model, args.judge, args.num_judge, args.batch_size)
    hits: dict[str, list[int]] = {}
    for probe in PROBES:
        fitted = fitted_probe(probe, fitted_on, labels, K)
        hits[probe] = (fitted.scores(judged).argmax(dim=1) == fitted.places(wanted)).int().tolist()
    return hits


@torch.inference_mode()
def _features(model: nn.Module, path: str, number: int, batch_size: int) -> tuple[Tensor, Tensor]:
    options = DataOptions(data_dir=path, num_samples=number, batch_size=batch_size)
    pairs = [(features(model, images)[0], labels) for images, labels in evaluation_batches(model, options)]
    found, labels = zip(*pairs, strict=True)
    return torch.cat(found), torch.cat(labels)


def table(entries: dict[Key, dict[str, Any]]) -> str:
    """The results with paired 95 % intervals to the original of the same checkpoint."""
    lines = ["| method | MACs | k-NN | to the original | linear | to the original |", "|---|---|---|---|---|---|"]
    for key, entry in sorted(entries.items(), key=lambda item: (-item[1]["macs_ratio"], item[0].method)):
        before = next((e for k, e in entries.items() if (k.checkpoint, k.method) == (key.checkpoint, ORIGINAL)), None)
        cells = [f"{key.method}, seed {key.seed}", f"{entry['macs_ratio']:.3f}"]
        for probe in PROBES:
            hits = entry["scores"][probe]
            cells.append(f"{100 * sum(hits) / len(hits):.2f} %")
            cells.append("" if before in (None, entry) else _change(before["scores"][probe], hits))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _change(before: Sequence[int], after: Sequence[int]) -> str:
    gained = sum(not b and a for b, a in zip(before, after, strict=True))
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    low, high = (100 * end for end in paired_difference(gained, lost, len(before)))
    return f"{100 * (gained - lost) / len(before):+.2f}, {low:+.2f} to {high:+.2f}"


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What has to be the same for entries to be comparable."""
    paths = {name: Path(getattr(args, name)).name for name in ("calibration", "fit", "judge")}
    return {**paths, "num_images": args.num_images, "num_fit": args.num_fit, "num_judge": args.num_judge, "k": K}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="any SOURCE of a plain ViT")
    parser.add_argument("--calibration", help="images to calibrate on: a folder or a .tar")
    parser.add_argument("--fit", help="labelled images that probes are fitted to")
    parser.add_argument("--judge", help="labelled images to score on")
    add_results(parser)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["budget-merge", "merge"])
    parser.add_argument("--targets", nargs="*", type=float, default=[0.8, 0.6], help="MACs kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-images", type=int, default=512, help="calibration images")
    parser.add_argument("--num-fit", type=int, default=5000)
    parser.add_argument("--num-judge", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--threads", type=int, help="torch threads; by default its own choice")
    parser.add_argument("--skip-original", action="store_true", help="for a second process beside the first")
    args = parser.parse_args()
    if not args.report and not (args.checkpoint and args.calibration and args.fit and args.judge):
        parser.error("CKPT, --calibration, --fit and --judge are needed (or --report)")
    check_results(parser, args)
    return args


if __name__ == "__main__":
    sys.exit(main())
