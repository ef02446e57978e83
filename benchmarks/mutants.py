"""Whether a one-line fault in the code that must not be wrong is caught by that code's own tests.

    python benchmarks/mutants.py --seed 2 --per-group 14 --recorded benchmarks/results/mutants.json    # new ones
    python benchmarks/mutants.py --again benchmarks/results/mutants.json --ended survived              # those again
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
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from mutants_sites import Key, Mutant, mutants_of
from mutants_tests import GROUPS, tests_of

Recorded = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
PRELOADED = ("torch", "timm", "timm.optim", "PIL.Image", "safetensors.torch", "pytest", "typer", "rich", "yaml")
"""What every mutant needs and none changes."""


def drawn(per_group: int, seed: int, recorded: Container[Key] = ()) -> list[tuple[str, Mutant]]:
    """The mutants of every group, as many of each file as of the next, and of each kind where there is one.

    Those recorded are left out.
    """
    found: list[tuple[str, Mutant]] = []
    for group, patterns in GROUPS.items():
        rng = random.Random(f"{seed} {group}")
        files = sorted({path for pattern in patterns for path in (ROOT / "vitcompact").glob(pattern)})
        pools = [
            [mutant for mutant in mutants_of(path, ROOT) if mutant.key not in recorded]
            for path in files
            if path.name != "__init__.py"
        ]
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


def found_again(recorded: Sequence[Recorded]) -> list[tuple[Recorded, Mutant | None]]:
    """The mutants of a record, wherever their lines stand now; None where the line is no more."""
    pools: dict[str, list[Mutant]] = {}
    found: list[tuple[Recorded, Mutant | None]] = []
    for each in recorded:
        path = ROOT / each["file"]
        pool = pools.setdefault(each["file"], mutants_of(path, ROOT) if path.is_file() else [])
        same = [mutant for mutant in pool if mutant.key == _key(each)]
        found.append((each, min(same, key=lambda mutant: abs(mutant.line - each["line"]), default=None)))
    return found


def _key(recorded: Recorded) -> Key:
    return recorded["file"], recorded["source"], recorded["column"], recorded["change"]


def check_plain(words: Sequence[str], copy: Path) -> str:
    """The test that fails without any fault, or nothing: what fails anyway would catch everything."""
    end, failed = _tested(words, copy, 3600.0)
    return "" if end == "survived" else failed or end


def run(mutant: Mutant, words: Sequence[str], copy: Path, limit: float) -> tuple[str, str]:
    """How a mutant ended (caught, survived, hung) and the test that caught it; `words` are pytest's."""
    path = copy / mutant.file
    plain = path.read_text(encoding="utf-8")
    path.write_text(mutant.applied(plain), encoding="utf-8")
    shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)
    try:
        return _tested(words, copy, limit)
    finally:
        path.write_text(plain, encoding="utf-8")


def _tested(words: Sequence[str], copy: Path, limit: float) -> tuple[str, str]:
    log = copy / "mutant.log"
    child = os.fork()
    if child == 0:
        _in_child(words, copy, log)
    ended = _wait(child, limit)
    if ended is None:
        return "hung", ""
    told = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    failed = [line.split(" ")[1] for line in told.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return ("survived" if ended == 0 else "caught"), (failed or [""])[0].rpartition("/")[2]


def _in_child(words: Sequence[str], copy: Path, log: Path) -> None:
    import pytest

    os.setsid()
    os.chdir(copy)
    sys.path[:0] = [str(copy)]
    os.environ["PYTHONPATH"] = str(copy)  # of processes that tests start
    with log.open("w", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        code = 3
        with contextlib.suppress(BaseException):
            code = int(pytest.main(["-x", "-q", "--tb=no", "-p", "no:cacheprovider", *words]))
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


def report(results: Sequence[Recorded]) -> str:
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
    """Draw, run and report; returns 1 where more than a twentieth survived, 2 where tests fail without a fault."""
    args = _parser().parse_args(argv)
    chosen = _chosen(args)
    if args.list:
        for told, mutant in chosen:
            print(f"{told['number']:3} {told['group']:10} {mutant.file}:{mutant.line} {mutant.kind}: {mutant.change}")
        return 0
    for name in PRELOADED:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "copy"
        hidden = shutil.ignore_patterns(".git", "__pycache__", ".venv")
        shutil.copytree(ROOT, copy, ignore=hidden)
        marks = ["-m", "not slow and not sweep"] if args.broad else []
        words = {mutant: [*marks, *(f"tests/{test}" for test in tests_of(mutant.file))] for _, mutant in chosen}
        wrong = check_plain([*marks, *sorted({word for each in words.values() for word in each[len(marks) :]})], copy)
        if wrong:
            print(f"fails without any fault: {wrong}")
            return 2
        for told, mutant in chosen:
            began = time.monotonic()
            end, caught_by = run(mutant, words[mutant], copy, args.limit)
            found = {**told, **mutant.to_json(), "end": end, "caught_by": caught_by}
            results.append(found)
            seconds = time.monotonic() - began
            number = told["number"]
            print(f"{number:3} {end:8} {mutant.file}:{mutant.line} {mutant.change}  ({seconds:.0f} s)", flush=True)
            if args.out is not None:
                with args.out.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(found) + "\n")
    print(report(results), end="")
    return 1 if sum(each["end"] == "survived" for each in results) > 0.05 * len(results) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-group", type=int, default=16, help="mutants of each group")
    parser.add_argument("--groups", nargs="+", choices=[*GROUPS], default=[*GROUPS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recorded", type=Path, help="draw none of those that this record holds")
    parser.add_argument("--again", type=Path, help="run those of this record instead, wherever their lines stand now")
    parser.add_argument("--ended", choices=["caught", "survived", "hung"], help="of --again, those that ended so")
    parser.add_argument("--only", nargs="+", type=int, help="numbers of the mutants to run")
    parser.add_argument("--broad", action="store_true", help="run the tests marked broad too")
    parser.add_argument("--list", action="store_true", help="show them, run none")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds after which a mutant counts as hung")
    parser.add_argument("--out", type=Path, help="append results to this file, one JSON document a line")
    return parser


def _chosen(args: argparse.Namespace) -> list[tuple[Recorded, Mutant]]:
    """What to run, each with what the record says of it besides: seed, number and group, and a reason given before."""
    if args.again is None:
        left_out = {_key(each) for each in _read(args.recorded)} if args.recorded else set()
        found: list[tuple[Recorded, Mutant | None]] = [
            ({"seed": args.seed, "number": number, "group": group}, mutant)
            for number, (group, mutant) in enumerate(drawn(args.per_group, args.seed, left_out))
        ]
    else:
        recorded = [each for each in _read(args.again) if args.ended in (None, each["end"])]
        found = found_again(recorded)
        gone = sum(mutant is None for _, mutant in found)
        print(f"{len(found)} recorded, {gone} of them in lines that are written otherwise now")
    kept = ("seed", "number", "group", "reason")
    return [
        ({name: told[name] for name in kept if name in told}, mutant)
        for told, mutant in found
        if mutant is not None and told["group"] in args.groups and (args.only is None or told["number"] in args.only)
    ]


def _read(path: Path) -> list[Recorded]:
    recorded: list[Recorded] = json.loads(path.read_text(encoding="utf-8"))
    return recorded


if __name__ == "__main__":
    raise SystemExit(main())
