"""Every family's small model and the real checkpoints, compacted and exported, against PyTorch batch by batch.

    python benchmarks/export_sweep.py benchmarks/results/export-sweep.jsonl    # goes on where it stopped
    python benchmarks/export_sweep.py /tmp/sweep.jsonl --models swin nest --formats .pt2
    python benchmarks/export_sweep.py benchmarks/results/export-sweep.jsonl --table

Models are those of `tests/conformance` (random weights, perturbed) and the checkpoints of the shared folder; each goes
through the pair and a budget, is folded and exported. Small models go to ONNX and `.pt2`, checkpoints to
OpenVINO as well, plain ViTs also to ExecuTorch and Core ML, whose rows say so where they are not installed. One JSON
line a cell: largest difference at batch 1, 3 and 8 relative to the largest output of that batch, on images that the
export did not compare on. Cells that failed or could not be run are tried again by the next run; the exit code is 1
where one failed.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from nothing_moved_cases import REAL
from nothing_moved_cases import build as build_checkpoint
from torch import Tensor, nn

import vitcompact
from vitcompact.exporting import FORMATS
from vitcompact.planning.request import OutOfReach

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.conformance.every import CASES, METHODS, compacted
from tests.conformance.every import build as build_small

BATCH_SIZES = (1, 3, 8)
MOST_REL_DIFF = 1e-4
EVERYWHERE = (".onnx", ".pt2")
CHECKPOINTS: dict[str, tuple[str, ...]] = {name: (*EVERYWHERE, ".xml") for name in REAL if name != "demo"}
PLAIN, FOR_PLAIN = ("deit_tiny", "vit_small_cifar10"), (".pte", ".mlpackage")
ONE_IMAGE = (".pte",)
"""Files that take one image at a time, and are not read back: what `export` measured is the row."""


def small(name: str) -> tuple[nn.Module, Tensor]:
    """A small model of `tests/conformance` by the name of its row, and noise to calibrate on."""
    case = next(case for case in CASES if row_name(case) == name)
    return build_small(case), torch.randn(16, 3, case.size, case.size, generator=torch.Generator().manual_seed(2))


def row_name(case: Any) -> str:
    """Cases of different families may have the same id."""
    return f"{case.id} ({case.name})" if sum(case.id == other.id for other in CASES) > 1 else str(case.id)


def names() -> dict[str, tuple[str, ...]]:
    """The formats that each model goes to."""
    found = {**{row_name(case): EVERYWHERE for case in CASES}, **CHECKPOINTS}
    return {name: (*formats, *FOR_PLAIN) if name in PLAIN else formats for name, formats in found.items()}


@torch.no_grad()
def differences(model: nn.Module, path: Path) -> dict[str, float]:
    """Largest difference of a file's outputs at each batch size, relative to the largest output."""
    opened = vitcompact.open_exported(path)
    size = opened.description.input.input_size
    found = {}
    for batch in BATCH_SIZES:
        images = torch.randn(batch, *size, generator=torch.Generator().manual_seed(100 + batch))
        wanted = model(images)
        found[str(batch)] = float((opened(images) - wanted).abs().max() / wanted.abs().max())
    return found


def cell(folded: nn.Module, form: str, folder: Path) -> dict[str, Any]:
    """One model in one format: what differs, or why there is no file."""
    missing = [name for name in FORMATS[form].modules if not _installed(name)]
    if missing:
        return {"not_run": f"{' and '.join(missing)} not installed"}
    try:
        written = vitcompact.export(folded, folder / f"model{form}", overwrite=True)
        row: dict[str, Any] = {"checked_with": written.checked_with, "bytes": written.bytes}
        if written.rel_diff is None:
            return {**row, "not_run": "converted; its runtime does not exist on this system"}
        found = {"1": written.rel_diff} if form in ONE_IMAGE else differences(folded, written.out)
        return {**row, "rel_diff": found, "passed": max(found.values()) <= MOST_REL_DIFF}
    except Exception as error:  # whatever one cell does, the others are to be run
        return {"error": re.sub(r"/\S*/(?=\S)", "", f"{type(error).__name__}: {error}")[:300]}  # no one's folders


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def rows_of(path: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The last row of each cell."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {(row["model"], row["method"], row["format"]): row for row in map(json.loads, lines)}


def run(name: str, method: str, formats: Sequence[str], data: Path, write: Callable[[dict[str, Any]], None]) -> None:
    """Compact a model once and export it to each of `formats`."""
    model, images = build_checkpoint(name, data) if name in CHECKPOINTS else small(name)
    folded = compacted(model, images, method)
    with tempfile.TemporaryDirectory() as folder:
        for form in formats:
            start = time.process_time()
            row = cell(folded, form, Path(folder))
            seconds = round(time.process_time() - start, 1)
            write({"model": name, "method": method, "format": form, **row, "cpu_seconds": seconds})


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Counts of each format, the cells closest to the limit, and whatever failed or was not run."""
    lines = ["| format | cells | agree | largest difference | where |", "|---|---|---|---|---|"]
    for form in dict.fromkeys(row["format"] for row in rows):
        cells = [row for row in rows if row["format"] == form]
        measured = [row for row in cells if "rel_diff" in row]
        worst = max(measured, key=lambda row: max(row["rel_diff"].values()), default=None)
        most = "" if worst is None else f"{max(worst['rel_diff'].values()):.1e}"
        where = "" if worst is None else f"`{worst['model']}`, {worst['method']}"
        passed = sum(row.get("passed", False) for row in cells)
        lines.append(f"| `{form}` | {len(cells)} | {passed} | {most} | {where} |")
    for row in rows:
        if not row.get("passed"):
            why = row.get("error") or row.get("not_run") or f"differs by {row['rel_diff']}"
            lines.append(f"\n- `{row['model']}`, {row['method']}, `{row['format']}`: {why}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cells that have not passed yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSON lines; cells that passed in it are not run again")
    parser.add_argument("--models", nargs="+", choices=[*names()], default=[*names()], metavar="NAME")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS], default=[*METHODS], metavar="NAME")
    parser.add_argument("--formats", nargs="+", choices=[*FORMATS], default=[*FORMATS], metavar="SUFFIX")
    parser.add_argument("--data", type=Path, default=Path("../shared"), help="the folder with models/ and data/")
    parser.add_argument("--table", action="store_true", help="only print what the file holds")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    logging.getLogger("vitcompact").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows = rows_of(args.file)

    def write(row: dict[str, Any]) -> None:
        rows[row["model"], row["method"], row["format"]] = row
        with args.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    for name in [] if args.table else args.models:
        for method in args.methods:
            left = [form for form in names()[name] if form in args.formats]
            left = [form for form in left if not rows.get((name, method, form), {}).get("passed")]
            if left:
                try:
                    run(name, method, left, args.data, write)
                except OutOfReach as error:
                    for form in left:
                        write({"model": name, "method": method, "format": form, "not_run": str(error)[:300]})
                except Exception as error:  # of the conversion
                    text = f"{type(error).__name__}: {error}"[:300]
                    for form in left:
                        write({"model": name, "method": method, "format": form, "error": text})
    print(table([*rows.values()]))
    return 1 if any("error" in row or row.get("passed") is False for row in rows.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
