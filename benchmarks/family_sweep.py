"""The whole job on every architecture of timm: convert, train a step, perturb, fold, reload, export.

    python benchmarks/family_sweep.py sweep.jsonl --coverage coverage.jsonl    # goes on where it stopped
    python benchmarks/family_sweep.py sweep.jsonl --models pvt_v2_b0 eva02_tiny_patch14_224
    python benchmarks/family_sweep.py sweep.jsonl --models pvt_v2_b0 --whole   # at full depth and width
    python benchmarks/family_sweep.py sweep.jsonl --keep                       # into benchmarks/results

Each architecture has its own options but fewer and narrower blocks and small images (`narrow_models.py`), random
weights, perturbed, and a few random images; one JSON line a model. A model passes when folding keeps its outputs
within 2e-4 relative (on its own and on perturbed weights), timm reloads the folded model bit for bit, and its `.pt2`
computes the same. One that, cut down, is module for module another that has passed is noted as that one. Models that
fail are listed with their error and tried again by the next run; the exit code is 1 if there are any.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import logging
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import timm
import torch
from family_coverage import MOST_PARAMS, SWEEP, keep, read
from narrow_models import Narrowing, create, narrowed, narrowest
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import vitcompact
from vitcompact.folding.verify import FoldParity, perturbed
from vitcompact.models import inspect
from vitcompact.plans.schema import Plan

MOST_REL_DIFF = 2e-4


def images_for(how: Narrowing, seed: int, count: int = 8) -> Tensor:
    """Noise of the size that a model is built for."""
    return torch.randn(count, 3, how.size, how.size, generator=torch.Generator().manual_seed(seed))


def with_statistics(model: nn.Module, how: Narrowing) -> nn.Module:
    """Evaluation mode, with batch norms that normalise: outputs of deep nets would explode."""
    update_bn([images_for(how, seed=4)], model)
    return model.eval()


def fingerprint(model: nn.Module, how: Narrowing) -> str:
    """What two architectures have in common that, cut down, are the same: modules, their settings, and shapes."""
    shapes = [(name, tuple(value.shape)) for name, value in model.state_dict().items()]
    settings = [
        sorted((key, str(value)) for key, value in vars(module).items() if isinstance(value, int | float | str | tuple))
        for module in model.modules()
    ]
    return hashlib.sha256(f"{model}{shapes}{settings}{how.size}".encode()).hexdigest()[:16]


def check(how: Narrowing, model: nn.Module) -> dict[str, Any]:
    """The whole job on one model; raises whatever goes wrong."""
    original = with_statistics(perturbed(model, seed=1), how)
    images = images_for(how, seed=2)
    anatomy = inspect(original)
    compact = vitcompact.convert(original, images=images)
    plan = cast(Plan, compact.vitcompact_plan)
    heads = sum(layer.kind == "attention" for layer in plan.layers)
    wide = how.width > 1 and bool(anatomy.ffn) and len(plan.layers) == heads
    if heads != len(anatomy.attention) or wide:
        raise TooSmall(
            f"{heads} of {len(anatomy.attention)} attention layers and {len(plan.layers) - heads} FFNs were converted"
        )
    trained = copy.deepcopy(compact).train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3)
    trained(images).square().mean().backward()
    torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0, error_if_nonfinite=True)  # as `finetune` does
    optimizer.step()
    moved = with_statistics(perturbed(trained, seed=3), how)
    folded = vitcompact.fold(moved, images=images)
    rel_diff = cast(FoldParity, folded.vitcompact_parity).rel_diff
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        wanted = folded(images)
        out = vitcompact.save(folded, Path(folder, "out"))
        again = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
        state = again.state_dict()
        same = torch.equal(again(images), wanted)
        same &= all(torch.equal(value, state[key]) for key, value in folded.state_dict().items())
        exported = vitcompact.export(again, Path(folder, "model.pt2")).rel_diff
    if not same:
        raise RuntimeError("the reloaded model is not bit-exact")
    if rel_diff > MOST_REL_DIFF or exported is None or exported > MOST_REL_DIFF:
        raise RuntimeError(f"folding changes the outputs by {rel_diff}, the export by {exported}")
    return {
        "params": sum(p.numel() for p in original.parameters()),
        "folded_params": sum(p.numel() for p in folded.parameters()),
        "attention": len(anatomy.attention),
        "ffn": sum(layer.kind == "ffn" for layer in plan.layers),
        "skipped": dict(Counter(item.reason for item in plan.skipped)),
        "rel_diff": rel_diff,
        "export_rel_diff": exported,
        "reload": "bit-exact",
    }


class TooSmall(RuntimeError):
    """Cut down, a model has layers that would not become smaller."""


def run(name: str, whole: bool, passed: dict[str, str]) -> dict[str, Any]:
    """One architecture, unless it is, cut down, one of those that passed."""
    own = Narrowing(0, 1, timm.get_pretrained_cfg(name).input_size[-1])
    how = own if whole else narrowest(name)
    larger = [replace(how, width=1), replace(how, width=1, size=own.size)] if not whole else []
    for each in larger:
        try:
            return run_as(name, how, passed)
        except TooSmall:
            how = each
    return run_as(name, how, passed)


def run_as(name: str, how: Narrowing, passed: dict[str, str]) -> dict[str, Any]:
    """One architecture cut down so far.

    Raises:
        TooSmall: some layers have become too small for it.
    """
    torch.manual_seed(0)
    model = create(name, how, num_classes=7)
    mark = fingerprint(model, how)
    line: dict[str, Any] = {"depth": how.depth, "width": how.width, "size": how.size, "fingerprint": mark}
    if mark in passed:
        return {**line, "same_as": passed[mark]}
    with narrowed(how):
        return {**line, **check(how, model)}


def chosen(coverage: Path) -> Iterator[str]:
    """Architectures of a coverage file with something to compact, the smallest with each set of layers first."""
    rows = [row for row in read(coverage).values() if row.get("params", MOST_PARAMS + 1) <= MOST_PARAMS]
    rows = sorted((row for row in rows if row["attention"] or row["ffn"]), key=lambda row: row["params"])
    seen: set[str] = set()
    first = []
    for row in rows:
        kind = json.dumps([timm.model_entrypoint(row["model"]).__module__, sorted(row["softmax"]), row["skipped"]])
        first.append(kind not in seen)
        seen.add(kind)
    yield from (row["model"] for row, is_first in zip(rows, first, strict=True) if is_first)
    yield from (row["model"] for row, is_first in zip(rows, first, strict=True) if not is_first)


def main() -> None:
    """Run the architectures that have not passed yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON lines; models that passed in it are not run again")
    chosen_by = parser.add_mutually_exclusive_group(required=True)
    chosen_by.add_argument("--models", nargs="+", metavar="NAME", help="only these timm models")
    chosen_by.add_argument("--coverage", type=Path, metavar="FILE", help="those that family_coverage.py found")
    chosen_by.add_argument("--keep", action="store_true", help="only put the file's rows into benchmarks/results")
    parser.add_argument("--whole", action="store_true", help="at full depth, width and image size")
    args = parser.parse_args()
    if args.keep:
        return keep(args.out, SWEEP)
    warnings.simplefilter("ignore")
    logging.getLogger("vitcompact").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows = [row for row in read(args.out).values() if "error" not in row]
    done = {row["model"] for row in rows}
    passed = {row["fingerprint"]: row["model"] for row in rows if "same_as" not in row}
    failures = 0
    with args.out.open("a", encoding="utf-8") as stream:
        for name in args.models or chosen(args.coverage):
            if name in done:
                continue
            start = time.perf_counter()
            line: dict[str, Any] = {"model": name}
            try:
                line |= run(name, args.whole, passed)
                passed.setdefault(line["fingerprint"], name)
            except Exception as error:  # whatever one model does, the others are to be run
                line["error"] = re.sub(r"/\S*/(?=\S)", "", f"{type(error).__name__}: {error}")[:300]  # no one's folders
                failures += 1
            line["seconds"] = round(time.perf_counter() - start, 1)
            stream.write(json.dumps(line) + "\n")
            stream.flush()
            print(json.dumps(line), flush=True)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
