"""Whether a conversion hangs on how many images go through the model at once, on threads, or on processes.

    python benchmarks/batching.py --data ../shared --record benchmarks/results/batching.jsonl
    python benchmarks/batching.py --models demo --batch-sizes 1 128

Each model is converted with every batch size on one thread, and with 64 images per batch on two threads. Then the
command line does it on the same checkpoint's files, in fresh interpreters two at a time: with images decoded in its own
thread and by two others, with other hash seeds, in other batches, and with the images shared by two processes that
torchrun starts. Printed, and recorded as JSON lines, are whether
the plan is that of the first conversion of its kind (64 images per batch, one thread), the largest difference of a
weight and of an output relative to the largest one of its tensor, and the share of equal first guesses. What is
recorded already is not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from nothing_moved_cases import REAL, build
from torch import Tensor, nn

import vitcompact

CASES: dict[str, dict[str, Any]] = {
    "pair": {"ratio": 0.5, "rank_ratio": 0.5},
    "macs": {"target_macs": 0.8},
}
PLAIN = 64
"""Images per batch of what all others are compared with."""


@dataclass(frozen=True)
class Way:
    """How one conversion is done; `workers` is None in this process, else the command line's, with a hash seed.

    `processes` share the images of one conversion.
    """

    batch_size: int
    threads: int = 1
    workers: int | None = None
    hash_seed: int | None = None
    processes: int = 1

    def __str__(self) -> str:
        text = f"batch {self.batch_size:3}, {self.threads} thread(s)"
        if self.workers is not None:
            text += f", command, {self.workers} worker(s), seed {self.hash_seed}"
        return text if self.processes == 1 else f"{text}, {self.processes} processes"


COMMANDS = (Way(PLAIN, 1, 0, 0), Way(PLAIN, 1, 2, 1), Way(7, 1, 2, 2), Way(PLAIN, 1, 0, 0, processes=2))
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


@dataclass(frozen=True)
class Outcome:
    """A conversion: its plan's layers, its weights, and what it answers."""

    layers: list[Any]
    weights: dict[str, Tensor]
    answer: Tensor

    @classmethod
    def of(cls, compact: nn.Module, images: Tensor) -> Outcome:
        """Look at a converted model."""
        layers = vitcompact.results(compact).plan.to_json()["layers"]
        with torch.no_grad():
            return cls(layers, dict(compact.state_dict()), compact.eval()(images[:64]))

    def differences(self, other: Outcome) -> dict[str, Any]:
        """How another one differs from this one; weights only where the plans are equal."""
        same = other.layers == self.layers
        guesses = (one.answer.argmax(-1) for one in (self, other))
        return {
            "plan_equal": same,
            "weights": max(furthest(w, other.weights[n]) for n, w in self.weights.items()) if same else None,
            "outputs": furthest(self.answer, other.answer),
            "same_first_guess": float(torch.eq(*guesses).float().mean()),
        }


def furthest(one: Tensor, other: Tensor) -> float:
    """Largest difference relative to the largest number."""
    return float((one - other).abs().max() / one.abs().max().clamp_min(1e-30))


def within(model: nn.Module, images: Tensor, case: str, ways: Sequence[Way]) -> Iterator[tuple[Way, Outcome]]:
    """Conversions in this process, of the same model and images."""
    for way in ways:
        torch.set_num_threads(way.threads)
        torch.manual_seed(0)
        compact = vitcompact.convert(model, images=images, batch_size=way.batch_size, **CASES[case])
        yield way, Outcome.of(compact, images)


def commanded(name: str, data: Path, images: Tensor, case: str, ways: Sequence[Way]) -> Iterator[tuple[Way, Outcome]]:
    """Conversions by the command line, two at a time, each in an interpreter of its own.

    Raises:
        CalledProcessError: one failed.
    """
    source, tar_file, _ = REAL[name]
    chosen = [text for key, value in CASES[case].items() for text in (f"--{key.replace('_', '-')}", str(value))]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:

        def run(number: int) -> Path:
            way, out = ways[number], Path(folder, str(number))
            launcher = [] if way.processes == 1 else [*TORCHRUN, str(way.processes)]
            command = [sys.executable, *launcher, "-m", "vitcompact", "convert", str(data / source), str(out)]
            command += [*chosen, "--quiet"]
            command += ["--data-dir", str(data / tar_file), "--num-samples", str(len(images)), "--dtype", "float32"]
            command += ["--batch-size", str(way.batch_size), "--workers", str(way.workers)]
            threads = {"OMP_NUM_THREADS": str(way.threads), "PYTHONHASHSEED": str(way.hash_seed)}
            subprocess.run(command, env={**os.environ, **threads}, check=True, stdout=subprocess.DEVNULL)
            return out

        for way, out in zip(ways, pool.map(run, range(len(ways))), strict=True):
            yield way, Outcome.of(vitcompact.load(out), images)


def compared(outcomes: Iterator[tuple[Way, Outcome]]) -> Iterator[dict[str, Any]]:
    """How each outcome differs from the first one."""
    first: Outcome | None = None
    start = sum(os.times()[:4])
    for way, found in outcomes:
        seconds = sum(os.times()[:4]) - start
        if first is not None:
            yield {"way": str(way), **asdict(way), **first.differences(found), "cpu_seconds": round(seconds)}
        first = first or found
        start = sum(os.times()[:4])


def line(row: dict[str, Any]) -> str:
    """A row as it is printed."""
    plan = "equal" if row["plan_equal"] else "DIFFERENT"
    weights = "" if row["weights"] is None else f", weights {row['weights']:.1e}"
    numbers = f"outputs {row['outputs']:.1e}, same first guess {row['same_first_guess']:.4f}"
    return f"{row['model']:18} {row['case']:12} {row['way']}: plan {plan}{weights}, {numbers}  ({row['cpu_seconds']} s)"


def recorded(path: Path | None) -> list[dict[str, Any]]:
    """Rows of a record."""
    if path is None or not path.exists():
        return []
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table; returns 1 where a plan differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=[*REAL], default=[*REAL], metavar="NAME")
    parser.add_argument("--cases", nargs="+", choices=[*CASES], default=[*CASES], metavar="NAME")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 7, 16, 128], metavar="N")
    parser.add_argument("--num-images", type=int, default=160)
    parser.add_argument("--data", type=Path, default=Path("../shared"), help="the folder with models/ and data/")
    parser.add_argument("--ways", default="*", metavar="GLOB", help="'*processes' or '*thread(s)', for instance")
    parser.add_argument("--record", type=Path, metavar="FILE", help="JSON lines, to which rows are added")
    args = parser.parse_args(argv)
    logging.getLogger("vitcompact").setLevel(logging.ERROR)
    rows = recorded(args.record)
    done = {(row["model"], row["case"], row["way"]) for row in rows}
    every = [*(Way(size) for size in args.batch_sizes), Way(PLAIN, 2), *COMMANDS[1:]]
    ways = [way for way in every if fnmatchcase(str(way), args.ways)]
    for name in args.models:
        model, images = build(name, args.data, args.num_images)
        for case in args.cases:
            missing = [way for way in ways if (name, case, str(way)) not in done]
            within_this = [way for way in missing if way.workers is None]
            by_command = [way for way in missing if way.workers is not None]
            found: list[Iterator[tuple[Way, Outcome]]] = []
            if within_this:
                found.append(within(model, images, case, [Way(PLAIN), *within_this]))
            if by_command:
                found.append(commanded(name, args.data, images, case, [COMMANDS[0], *by_command]))
            for row in (row for outcomes in found for row in compared(outcomes)):
                row = {"model": name, "case": case, "num_images": len(images), **row}
                rows.append(row)
                print(line(row), flush=True)
                if args.record:
                    with args.record.open("a", encoding="utf-8") as stream:
                        stream.write(json.dumps(row) + "\n")
    return 1 if any(not row["plan_equal"] for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
