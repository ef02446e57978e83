"""`python -m tests.fuzzing`: hostile files through every reader, with figures at the end; exit 1 where one wins."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import multiprocessing
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random

import torch

from .readers import READERS
from .sandbox import BATCH, Case, Verdict, prepare, run
from .seeds import Seeds

COLUMNS = ("read", "refused", "executed", "untyped", "slow", "memory", "left", "message", "died")


def chosen(only: list[str] | None) -> list[str]:
    """Readers whose packages are here."""
    names = only or list(READERS)
    return [name for name in names if all(importlib.util.find_spec(package) for package in READERS[name].needs)]


def cases(files: int, first: int, names: list[str]) -> list[Case]:
    """`files` cases, shared among the readers, in an order that mixes them."""
    total = sum(READERS[name].share for name in names)
    found = [Case(name, first + i) for name in names for i in range(-(-files * READERS[name].share // total))]
    Random(first).shuffle(found)
    return found


def side_by_side(todo: list[Case], seeds: Seeds, jobs: int) -> Iterator[Verdict]:
    """Run cases in several processes, which share what honest files there are."""
    for reader in sorted({case.reader for case in todo}):
        prepare(seeds, reader)
    parts = [todo[i : i + BATCH] for i in range(0, len(todo), BATCH)]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"), _share, (seeds,)) as pool:
        for verdicts in pool.map(_run, parts):
            yield from verdicts


_SHARED: list[Seeds] = []


def _share(seeds: Seeds) -> None:
    _SHARED[:] = [seeds]


def _run(part: list[Case]) -> list[Verdict]:
    return list(run(part, _SHARED[0]))


def table(verdicts: list[Verdict]) -> str:
    """Figures of each reader."""
    rows: list[tuple[str, ...]] = [("reader", "files", *COLUMNS, "s at most", "MB at most")]
    by_reader: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        by_reader[verdict.reader].append(verdict)
    for name, found in (*by_reader.items(), ("all", verdicts)):
        counts = [sum(verdict.outcome == outcome for verdict in found) for outcome in COLUMNS]
        worst = max(verdict.seconds for verdict in found), max(verdict.peak for verdict in found) >> 20
        rows.append((name, *map(str, (len(found), *counts)), f"{worst[0]:.1f}", str(worst[1])))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description=__doc__)
    parser.add_argument("--files", type=int, default=10_000, help="about how many files in all")
    parser.add_argument("--seed", type=int, default=0, help="of the first file of each reader")
    parser.add_argument("--only", action="append", choices=sorted(READERS), help="a reader; may be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="processes that run cases")
    parser.add_argument("--out", type=Path, help="a JSON file for the verdicts that failed")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    todo = cases(given.files, given.seed, chosen(given.only))
    found: list[Verdict] = []
    with tempfile.TemporaryDirectory() as folder:
        for verdict in side_by_side(todo, Seeds(Path(folder)), given.jobs):
            found.append(verdict)
            if verdict.failed or len(todo) == 1:
                again = f"--only '{verdict.reader}' --seed {verdict.seed} --files 1"
                print(f"{verdict.outcome}: {again}\n{verdict.text}\n", flush=True)
            if len(found) % 500 == 0:
                print(f"{len(found)} of {len(todo)}", flush=True)
    print(table(found))
    failed = [verdict for verdict in found if verdict.failed]
    if given.out is not None:
        given.out.write_text(json.dumps([vars(verdict) for verdict in failed], indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
