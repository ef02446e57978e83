"""Plans and weights of `convert` and `fold`, to the bit: recorded before the inside changes, compared after.

    python benchmarks/nothing_moved.py --compare benchmarks/results/nothing-moved.json --data ../shared
    python benchmarks/nothing_moved.py --compare benchmarks/results/nothing-moved.json --models demo swin    # quicker
    python benchmarks/nothing_moved.py --record FILE.json --data ../shared       # goes on where it stopped

The demo's checkpoint, the three real ones of the shared folder and a small random model of each family go through the
cases below on few images. Kept are the plan (what decides the structure; reasons and format versions may change) and a
SHA-256 of all tensors in order (names, shapes, types, bytes), with a short digest of each to say where a difference
begins. Only the public interface is used, so that the script outlives what it guards. Floating point differs between
processors and releases: there, record anew on the earlier code. Exit codes: 1 where anything moved, 2 where it cannot
be told (another machine, other libraries, no shared folder).
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import logging
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import torch
from nothing_moved_cases import CASES, DEMO_CASES, RANDOM, REAL, build, cases_of
from torch import Tensor, nn

import vitcompact

DIGITS = 4
"""Hexadecimal digits kept of one tensor's digest; the one over all of them is kept whole."""


def state_of(model: nn.Module) -> dict[str, Any]:
    """The saved plan's structure and the digests of a model's tensors; their `names` are not recorded."""
    with tempfile.TemporaryDirectory() as folder:
        config = (vitcompact.save(model, Path(folder, "out")) / "config.json").read_text(encoding="utf-8")
    plan = json.loads(config)["model_args"]["plan"]
    digests = {}
    for name, tensor in model.state_dict().items():
        content = tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
        header = f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode()
        digests[name] = hashlib.sha256(header + content).hexdigest()
    return {
        "form": plan["form"],
        "layers": plan["layers"],
        "skipped": [item["name"] for item in plan["skipped"]],
        "merge_tokens": plan.get("merge_tokens", []),
        "names": list(digests),
        "tensors": " ".join(digest[:DIGITS] for digest in digests.values()),
        "sha256": hashlib.sha256("".join(digests.values()).encode()).hexdigest(),
    }


def run_case(model: nn.Module, images: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    """What `convert` and then `fold` make of a model (`state_of`), or the class of the error that refused it."""
    torch.manual_seed(0)
    try:
        compact = vitcompact.convert(model, **{"images": images, **options})
        done = {"convert": state_of(compact), "fold": state_of(vitcompact.fold(compact))}
    except vitcompact.VitCompactError as error:
        return {"refused": type(error).__name__}
    if done["fold"]["layers"] == done["convert"]["layers"]:
        done["fold"]["layers"] = ["as converted"]
    return done


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Where two results of `run_case` first differ, `old` as it was recorded; empty where they are equal."""
    if "refused" in old or "refused" in new:
        before, after = (case.get("refused", "converted") for case in (old, new))
        return "" if before == after else f"was {before}, is {after}"
    for stage, state in old.items():
        for key, before in state.items():
            after = new[stage][key]
            if before == after:
                continue
            if isinstance(before, str) and key != "tensors":
                return f"{stage}: {key} was {before}, is {after}"
            if key == "tensors":
                before, after = before.split(), after.split()
            if len(before) != len(after):
                return f"{stage}: {len(before)} {key}, now {len(after)}"
            at = next(i for i, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1])
            where = new[stage]["names"][at] if key == "tensors" else key
            return f"{stage}: {where} was {before[at]}, is {after[at]}"
    return ""


def facts() -> dict[str, str]:
    """What equality to the bit depends on, besides the library."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    cpu = {platform.processor(), *(line for line in lines if line.startswith(("model name", "flags", "Features")))}
    built = "\n".join([*sorted(cpu), torch.backends.cpu.get_cpu_capability(), torch.__config__.show()])
    versions = {name: version(name) for name in ("torch", "torchvision", "timm", "pillow", "numpy")}
    return {"cpu": hashlib.sha256(built.encode()).hexdigest()[:12], **versions}


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The cases of a record; leaves with 2 where another machine or other libraries made it."""
    document = json.loads(path.read_text(encoding="utf-8"))
    was, now = document["made_with"], facts()
    if changed := [f"{key} was {was.get(key)}, is {now[key]}" for key in now if was.get(key) != now[key]]:
        refuse(f"{path} was recorded elsewhere ({'; '.join(changed)}): record anew here, on the earlier code")
    return dict(document["cases"])


def write(path: Path, cases: dict[str, dict[str, Any]]) -> None:
    """One line a case, without the tensors' names: who compares has them. The file is complete or as it was."""
    made_with = json.dumps({**facts(), "vitcompact": vitcompact.__version__})
    lines = []
    for key, case in cases.items():
        short = case if "refused" in case else {stage: without_names(state) for stage, state in case.items()}
        lines.append(f"{json.dumps(key)}: {json.dumps(short, separators=(',', ':'))}")
    part = path.with_suffix(".part")
    part.write_text(f'{{"made_with": {made_with}, "cases": {{\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8")
    part.replace(path)


def without_names(state: dict[str, Any]) -> dict[str, Any]:
    """A state as it is recorded."""
    return {key: value for key, value in state.items() if key != "names"}


def refuse(message: str) -> NoReturn:
    """Say why it cannot be told, and leave with 2."""
    print(message, file=sys.stderr)
    sys.exit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Record or compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--record", type=Path, metavar="FILE", help="JSON; cases already in it are not run again")
    task.add_argument("--compare", type=Path, metavar="FILE", help="what --record wrote")
    parser.add_argument("--models", nargs="+", choices=[*RANDOM, *REAL], default=[*RANDOM, *REAL], metavar="NAME")
    parser.add_argument("--cases", nargs="+", choices=[*CASES, *DEMO_CASES], metavar="NAME", help="default: all")
    parser.add_argument("--data", type=Path, default=Path("../shared"), help="the folder with models/ and data/")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    logging.getLogger("vitcompact").setLevel(logging.ERROR)  # so few images are meant
    known = read(args.compare) if args.compare else read(args.record) if args.record.exists() else {}
    wanted = [(name, case) for name in args.models for case in cases_of(name) if case in (args.cases or cases_of(name))]
    if args.compare and (missing := [" ".join(pair) for pair in wanted if " ".join(pair) not in known]):
        refuse(f"{args.compare} lacks {', '.join(missing)}: record them on the earlier code")
    if args.record:
        wanted = [pair for pair in wanted if " ".join(pair) not in known]
    moved = 0
    for name, pairs in itertools.groupby(wanted, key=lambda pair: pair[0]):
        try:
            model, images = build(name, args.data)
        except vitcompact.UsageError as error:
            refuse(f"{error}: give the shared folder with --data, or other --models")
        for _, case in pairs:
            key, start = f"{name} {case}", time.process_time()
            result = run_case(model, images, cases_of(name)[case])
            outcome = result.get("refused", "recorded")
            if args.compare:
                where = difference(known[key], result)
                outcome = f"DIFFERENT {where}" if where else "equal"
                moved += bool(where)
            else:
                known[key] = result
                write(args.record, known)
            print(f"{key:32} {time.process_time() - start:6.1f} s  {outcome}", flush=True)
    print(f"{len(wanted)} compared, {moved} different" if args.compare else f"{len(known)} recorded in {args.record}")
    return 1 if moved else 0


if __name__ == "__main__":
    sys.exit(main())
