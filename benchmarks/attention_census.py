"""Count how many registered timm models carry each attention class, and write the table and its documentation.

    python benchmarks/attention_census.py                            # counts, about five minutes on one core
    python benchmarks/attention_census.py --markdown docs/families.md  # only the generated parts of that file, at once

Models are built on the meta device, one at a time: no weights, no downloads. `--found FILE` keeps what was found, one
model a line, so that a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import timm
import torch

from vitcompact import models
from vitcompact.models import attention_classes, census
from vitcompact.utils.files import write_file

MATRIX, EXAMPLE = "matrix", "example"
EXAMPLE_FILE = Path(models.__file__).with_name("visformer.py")
TABLE = Path(attention_classes.__file__).with_name(attention_classes.TABLE)


def registered_models() -> list[str]:
    """timm's own architectures: entrypoints that others registered are left out."""
    names = timm.list_models()
    return [name for name in names if timm.model_entrypoint(name).__module__.startswith("timm.")]


def classes_in(name: str) -> list[str]:
    """Names of all module classes of one architecture."""
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    return sorted({attention_classes.class_name(type(module)) for module in model.modules()})


def find_classes(names: list[str], found_file: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Classes of each architecture, and why the others could not be built."""
    found: dict[str, list[str]] = {}
    failed: dict[str, str] = {}
    if found_file.exists():
        found = dict(json.loads(line) for line in found_file.read_text().splitlines())
    with found_file.open("a") as stream:
        for count, name in enumerate(names, 1):
            if name in found:
                continue
            try:
                found[name] = classes_in(name)
            except Exception as error:  # any of a thousand models may refuse in its own way: it is listed
                failed[name] = f"{type(error).__name__}: {error}"
                continue
            stream.write(json.dumps([name, found[name]]) + "\n")
            stream.flush()
            if count % 100 == 0:
                print(f"{count}/{len(names)} {name}", file=sys.stderr)
    return {name: found[name] for name in names if name in found}, failed


def count_models(found: dict[str, list[str]]) -> dict[str, object]:
    """The stored table with fresh counts; kinds and notes stay as they were decided by hand."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    rows = table["attention"]
    softmax = {name for name, row in rows.items() if row["kind"] == "softmax"}
    counts = Counter(name for classes in found.values() for name in classes)
    for name, row in rows.items():
        row["models"] = counts[name]
    return {
        "timm": timm.__version__,
        "models": len(found),
        "with_attention": sum(not rows.keys().isdisjoint(classes) for classes in found.values()),
        "with_softmax": sum(not softmax.isdisjoint(classes) for classes in found.values()),
        "attention": dict(sorted(rows.items())),
        "not_attention": dict(sorted(table["not_attention"].items())),
    }


def summary() -> str:
    """The totals in one sentence."""
    table = attention_classes.attention_table()
    used = [entry for entry in table.attention.values() if entry.models]
    softmax = sum(entry.kind == "softmax" for entry in used)
    return (
        f"timm {table.timm}: {table.with_attention} of {table.models} models carry attention, of {len(used)} classes; "
        f"{table.with_softmax} of them carry one of the {softmax} classes with a softmax map for each head.\n"
    )


def replaced(text: str, section: str, content: str) -> str:
    """`text` with what is between the two markers of a section replaced."""
    begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    if not after:
        raise SystemExit(f"there is no '{begin}' … '{end}' to write between")
    return f"{before}{begin}\n\n{content}\n{end}{after}"


def write_markdown(path: Path) -> None:
    """Replace the totals, the matrix and the worked example between their markers."""
    text = path.read_text(encoding="utf-8")
    text = replaced(text, MATRIX, f"{summary()}\n{census.to_markdown(census.support_matrix())}")
    code = EXAMPLE_FILE.read_text(encoding="utf-8")
    write_file(path, replaced(text, EXAMPLE, f"```python\n{code}```\n"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="only rewrite the generated parts of this file")
    parser.add_argument("--found", type=Path, metavar="FILE", help="keep what was found here and go on from it")
    args = parser.parse_args()
    if args.markdown:
        return write_markdown(args.markdown)
    if missing := census.unclassified():
        raise SystemExit(f"decide first what these are, in {TABLE.name}: {', '.join(missing)}")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.nice(10)
    with tempfile.TemporaryDirectory() as folder:
        found, failed = find_classes(registered_models(), args.found or Path(folder, "found.jsonl"))
    table = count_models(found)
    write_file(TABLE, json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    for name, reason in failed.items():
        print(f"not built: {name}: {reason}")
    attention_classes.attention_table.cache_clear()
    print(summary(), end="")


if __name__ == "__main__":
    main()
