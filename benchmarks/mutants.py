"""Whether a one-line fault in the code that must not be wrong is caught by that code's own tests.

    python benchmarks/mutants.py --per-group 16
    python benchmarks/mutants.py --only 3 17            # some of them again
    python benchmarks/mutants.py --list                 # show them without running anything

Lines are drawn by seed, evenly over the files of each group, and changed one at a time in a copy of the checkout: a
comparison is flipped, a number moved by one, a `not` or a call dropped, `and` becomes `or`, plus becomes minus, two
arguments change places. Each mutant runs against the tests of its file until the first failure, in a process forked
from one that has loaded torch and timm. Results are appended to a file as they come; those recorded are in
`benchmarks/results/mutants.json`, with the reason beside each that survived.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mutants_sites import Mutant, mutants_of

ROOT = Path(__file__).resolve().parents[1]
PRELOADED = ("torch", "timm", "timm.optim", "PIL.Image", "safetensors.torch", "pytest", "typer", "rich", "yaml")
"""What every mutant needs and none changes."""
GROUPS: dict[str, tuple[str, ...]] = {
    "folding": ("folding/*.py", "layers/factor.py", "layers/branches.py"),
    "operators": ("operators/*.py",),
    "planning": ("planning/*.py",),
    "writing": (
        *("checkpoint/write.py", "checkpoint/disk.py", "checkpoint/rebuilt.py", "checkpoint/record.py"),
        *("utils/files.py", "utils/locks.py", "utils/postponed.py", "utils/scratch.py"),
    ),
    "resume": (
        *("training/state.py", "training/keep.py", "training/loop.py", "training/schedule.py", "training/stream.py"),
        *("training/finetune.py", "training/interrupt.py"),
    ),
}
"""Files of the package by group."""
TESTS: dict[str, tuple[str, ...]] = {
    "folding/": ("folding",),
    "layers/": ("layers/test_factor.py", "folding"),
    "operators/filter_fit": ("operators/test_filter_fit.py", "surgery/test_value_filter.py"),
    "operators/hallucinate": ("operators/test_pairing.py", "operators/test_filter_fit.py", "surgery/test_convert.py"),
    "operators/pair": ("operators/test_pairing.py", "operators/test_fits.py"),
    "operators/merg": ("operators/test_merging.py",),
    "operators/neurons": ("operators/test_neurons.py",),
    "operators/share_qk": ("operators/test_share_qk.py",),
    "operators/refit": ("operators/test_filter_fit.py", "surgery/test_value_filter.py"),
    "operators/outputs": ("surgery/test_convert.py",),
    "operators/": (
        *(
            "operators/test_fits.py",
            "operators/test_thin.py",
            "operators/test_registry.py",
            "operators/test_neurons.py",
        ),
        *("operators/test_share_qk.py", "surgery/test_convert.py"),
    ),
    "planning/knapsack": ("planning/test_knapsack.py", "planning/test_budget.py"),
    "planning/latency_target": ("planning/test_latency_target.py",),
    "planning/site_time": ("planning/test_site_time.py", "planning/test_latency_target.py"),
    "planning/site_structure": ("planning/test_site_time.py",),
    "planning/combinations": (
        "planning/test_site_time.py",
        "planning/test_latency_target.py",
        "planning/test_budget.py",
    ),
    "planning/merging": ("planning/test_merging_budget.py",),
    "planning/scope": ("library/test_plan.py", "surgery/test_convert.py"),
    "planning/planner": ("planning/test_budget.py", "planning/test_merging_budget.py", "analysis/test_analyze.py"),
    "planning/": ("planning/test_budget.py", "planning/test_knapsack.py", "planning/test_merging_budget.py"),
    "checkpoint/": ("checkpoint/test_write.py", "checkpoint/test_rebuilt.py"),
    "utils/files": ("utils/test_files.py", "checkpoint/test_write.py"),
    "utils/": ("utils/test_files.py", "utils/test_scratch.py", "utils/test_postponed.py"),
    "training/schedule": ("training/test_schedule.py", "training/test_resume.py"),
    "training/finetune": ("training/test_finetune.py", "training/test_resume.py"),
    "training/": ("training/test_resume.py", "training/test_schedule.py", "training/test_finetune.py"),
}
"""By the beginning of a file's name, the first that fits: the tests that have to notice."""


def tests_of(file: str) -> tuple[str, ...]:
    """The tests of a file of the package."""
    name = file.removeprefix("vitcompact/")
    return next(tests for start, tests in TESTS.items() if name.startswith(start))


def drawn(per_group: int, seed: int) -> list[tuple[str, Mutant]]:
    """The mutants of every group, as many of each file as of the next, and of each kind where there is one."""
    found: list[tuple[str, Mutant]] = []
    for group, patterns in GROUPS.items():
        rng = random.Random(f"{seed} {group}")
        files = sorted({path for pattern in patterns for path in (ROOT / "vitcompact").glob(pattern)})
        pools = [mutants_of(path, ROOT) for path in files if path.name != "__init__.py"]
        rng.shuffle(pools)
        kinds: Counter[str] = Counter()
        left = per_group
        while left and any(pools):
            for pool in pools:
                if pool and left:
                    rng.shuffle(pool)
                    chosen = min(pool, key=lambda mutant: kinds[mutant.kind])
                    taken = [mutant for mutant in pool if mutant.line == chosen.line]
                    for mutant in taken:  # one fault a line
                        pool.remove(mutant)
                    kinds[chosen.kind] += 1
                    found.append((group, chosen))
                    left -= 1
    return found


def run(mutant: Mutant, tests: Sequence[str], copy: Path, limit: float) -> tuple[str, str]:
    """How a mutant ended (caught, survived, hung) and the test that caught it."""
    path = copy / mutant.file
    plain = path.read_text(encoding="utf-8")
    path.write_text(mutant.applied(plain), encoding="utf-8")
    shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)
    log = copy / "mutant.log"
    try:
        child = os.fork()
        if child == 0:
            _in_child(tests, copy, log)
        ended = _wait(child, limit)
    finally:
        path.write_text(plain, encoding="utf-8")
    if ended is None:
        return "hung", ""
    told = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    failed = [line.split(" ")[1] for line in told.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return ("survived" if ended == 0 else "caught"), (failed or [""])[0].rpartition("/")[2]


def _in_child(tests: Sequence[str], copy: Path, log: Path) -> None:
    import pytest

    os.setsid()
    os.chdir(copy)
    sys.path[:0] = [str(copy)]
    with log.open("w", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        words = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)]
        code = 3
        with contextlib.suppress(BaseException):
            code = int(pytest.main(words))
        sys.stdout.flush()
        os._exit(code)


def _wait(child: int, limit: float) -> int | None:
    """The exit code of a child, None where it took longer than `limit` seconds and was ended."""
    until = time.monotonic() + limit
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def report(results: Sequence[dict[str, Any]]) -> str:
    """A table of the groups, and every mutant that no test caught."""
    out = io.StringIO()
    for group in GROUPS:
        ends = Counter(each["end"] for each in results if each["group"] == group)
        if ends:
            print(f"{group:10} {sum(ends.values()):3} mutants: {dict(ends)}", file=out)
    survivors = [each for each in results if each["end"] == "survived"]
    for each in survivors:
        print(f"survived: {each['file']}:{each['line']} {each['kind']}: {each['change']}", file=out)
        if each.get("reason"):
            print(f"          {each['reason']}", file=out)
    print(f"{len(survivors)} of {len(results)} survived", file=out)
    return out.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Draw, run and report; returns 1 where more than a twentieth survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-group", type=int, default=16, help="mutants of each group")
    parser.add_argument("--groups", nargs="+", choices=[*GROUPS], default=[*GROUPS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", type=int, help="numbers of the mutants to run")
    parser.add_argument("--list", action="store_true", help="show them, run none")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds after which a mutant counts as hung")
    parser.add_argument("--out", type=Path, help="append results to this file, one JSON document a line")
    args = parser.parse_args(argv)
    chosen = [
        (number, group, mutant)
        for number, (group, mutant) in enumerate(drawn(args.per_group, args.seed))
        if group in args.groups and (args.only is None or number in args.only)
    ]
    if args.list:
        for number, group, mutant in chosen:
            print(f"{number:3} {group:10} {mutant.file}:{mutant.line} {mutant.kind}: {mutant.change}")
        return 0
    for name in PRELOADED:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "copy"
        hidden = shutil.ignore_patterns(".git", "__pycache__", ".venv")
        shutil.copytree(ROOT, copy, ignore=hidden)
        for number, group, mutant in chosen:
            began = time.monotonic()
            end, caught_by = run(mutant, tests_of(mutant.file), copy, args.limit)
            found = {"number": number, "group": group, **mutant.to_json(), "end": end, "caught_by": caught_by}
            results.append(found)
            seconds = time.monotonic() - began
            print(f"{number:3} {end:8} {mutant.file}:{mutant.line} {mutant.change}  ({seconds:.0f} s)", flush=True)
            if args.out is not None:
                with args.out.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(found) + "\n")
    print(report(results), end="")
    return 1 if sum(each["end"] == "survived" for each in results) > 0.05 * len(results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
