"""Whether a conversion hangs on how many images go through the model at once, or on the number of threads.

    python benchmarks/batching.py --data ../shared
    python benchmarks/batching.py --models demo --batch-sizes 1 128

Each model is converted with every batch size on one thread, and with the first one on two threads. Printed are whether
the plan is that of 64 images per batch, the largest difference of a weight and of an output relative to the largest one
of its tensor, and the share of equal first guesses.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nothing_moved_cases import REAL, build
from torch import Tensor, nn

import vitcompact

CASES: dict[str, dict[str, Any]] = {
    "pair": {"ratio": 0.5, "rank_ratio": 0.5},
    "macs": {"target_macs": 0.8},
    "reconstruct": {"target_macs": 0.8, "reconstruct": 10},
}


@dataclass(frozen=True)
class Outcome:
    """A conversion: its plan's layers, its weights, and what it answers."""

    layers: list[Any]
    weights: dict[str, Tensor]
    answer: Tensor

    @classmethod
    def of(cls, model: nn.Module, images: Tensor, options: dict[str, Any]) -> Outcome:
        """Convert `model` and look at what came out."""
        torch.manual_seed(0)
        compact = vitcompact.convert(model, images=images, **options)
        layers = vitcompact.results(compact).plan.to_json()["layers"]
        with torch.no_grad():
            return cls(layers, dict(compact.state_dict()), compact.eval()(images[:64]))


def furthest(one: Tensor, other: Tensor) -> float:
    """Largest difference relative to the largest number."""
    return float((one - other).abs().max() / one.abs().max().clamp_min(1e-30))


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table; returns 1 where a plan differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=[*REAL], default=[*REAL], metavar="NAME")
    parser.add_argument("--cases", nargs="+", choices=[*CASES], default=[*CASES], metavar="NAME")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 7, 16, 128], metavar="N")
    parser.add_argument("--num-images", type=int, default=160)
    parser.add_argument("--data", type=Path, default=Path("../shared"), help="the folder with models/ and data/")
    args = parser.parse_args(argv)
    logging.getLogger("vitcompact").setLevel(logging.ERROR)
    moved = 0
    for name in args.models:
        model, images = build(name, args.data, args.num_images)
        for case in args.cases:
            first = None
            for size, threads in [(64, 1), *((size, 1) for size in args.batch_sizes), (64, 2)]:
                torch.set_num_threads(threads)
                start = time.process_time()
                found = Outcome.of(model, images, {**CASES[case], "batch_size": size})
                first = first or found
                same = found.layers == first.layers
                moved += not same
                line = (
                    f"{name:18} {case:12} batch {size:3}, {threads} thread(s): plan {'equal' if same else 'DIFFERENT'}"
                )
                if same:
                    line += f", weights {max(furthest(w, found.weights[n]) for n, w in first.weights.items()):.1e}"
                equal = float((found.answer.argmax(-1) == first.answer.argmax(-1)).float().mean())
                line += f", outputs {furthest(first.answer, found.answer):.1e}, same first guess {equal:.4f}"
                print(f"{line}  ({time.process_time() - start:.0f} s)", flush=True)
    return 1 if moved else 0


if __name__ == "__main__":
    raise SystemExit(main())
