"""What timm's models run, and what of it compacts: found by running each architecture without memory.

    python benchmarks/family_coverage.py coverage.jsonl                  # goes on where it stopped
    python benchmarks/family_coverage.py coverage.jsonl --shard 0/2      # every second model, for two processes
    python benchmarks/family_coverage.py coverage.jsonl --keep           # into benchmarks/results
    python benchmarks/family_coverage.py --markdown docs/families.md     # the counts of results, between the markers

Models are built and run on the meta device while softmaxes and attention kernels are watched: which module class calls
them, on tensors of which shape. A class runs a softmax over tokens for each head if the table of attention classes says
that it is of that kind; of the others that call a softmax it says what they are. One JSON line a model.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from attention_census import registered_models, replaced
from torch import nn
from torch.overrides import TorchFunctionMode

from vitcompact.errors import NothingToCompactError
from vitcompact.models import inspect
from vitcompact.models.attention_classes import attention_table, class_name
from vitcompact.utils.files import write_file

SECTION = "coverage"
MOST_PARAMS = 100_000_000
COVERAGE, SWEEP = (Path(__file__).parent / "results" / f"family-{kind}.jsonl.gz" for kind in ("coverage", "sweep"))
"""What was run so far."""
CONVOLUTIONAL = (
    *("resnet", "resnetv2", "efficientnet", "regnet", "nfnet", "mobilenetv3", "densenet", "vgg", "dla", "res2net"),
    *("hrnet", "cspnet", "resnest", "sknet", "tresnet", "vovnet", "ghostnet", "hgnet", "inception_resnet_v2", "dpn"),
)
"""timm's modules of plain convolutional networks, which come last."""
SOFTMAX = (F.softmax, torch.softmax, torch.Tensor.softmax)


class SoftmaxWatch(TorchFunctionMode):
    """Notes which of the running modules calls a softmax or an attention kernel, and on what shape."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found: dict[str, set[str]] = defaultdict(set)
        self._running: list[str] = []
        for module in model.modules():
            module.register_forward_pre_hook(self._enter)
            module.register_forward_hook(self._leave)

    def _enter(self, module: nn.Module, _: Any) -> None:
        self._running.append(class_name(type(module)))

    def _leave(self, *_: Any) -> None:
        self._running.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        fused = func in (F.scaled_dot_product_attention, F.multi_head_attention_forward)
        if fused or func in SOFTMAX:
            module = next(
                (name for name in reversed(self._running) if name != "torch.nn.modules.activation.Softmax"), ""
            )
            shape = "x".join(map(str, args[0].shape))
            self.found[module].add(f"{getattr(func, '__name__', func)} {shape}")
        return func(*args, **(kwargs or {}))


def look(name: str) -> dict[str, Any]:
    """One architecture: its size, what calls a softmax in it, and the layers that can be compacted."""
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False).eval()
    row: dict[str, Any] = {"model": name, "params": sum(p.numel() for p in model.parameters())}
    try:
        anatomy = inspect(model)
        row |= {"attention": len(anatomy.attention), "ffn": len(anatomy.ffn)}
        row["skipped"] = dict(Counter(item.reason for item in anatomy.skipped))
    except NothingToCompactError as error:
        row |= {"attention": 0, "ffn": 0, "skipped": {str(error): 1}}
    watch = SoftmaxWatch(model)
    with torch.no_grad(), watch:
        model(torch.empty(1, *timm.get_pretrained_cfg(name).input_size, device="meta"))
    row["softmax"] = {module: sorted(calls)[:2] for module, calls in watch.found.items()}
    return row


def is_token_softmax(class_: str) -> bool:
    """Whether a class that calls a softmax runs one over tokens for each head; unknown classes count."""
    known = attention_table().attention.get(class_)
    if known is None:
        return class_ not in attention_table().not_attention and class_ not in OTHER_SOFTMAX
    return known.kind == "softmax"


OTHER_SOFTMAX = (
    *("layers.global_context.GlobalContext", "layers.split_attn.RadixSoftmax", ""),
    *("efficientvim.HSMSSD", "efficientvim.EfficientViM", "efficientvim.EfficientViMDistilled"),
)
"""What calls a softmax for something else: gates, state-space mixers, weights of outputs."""


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a file (maybe `.gz`) by model; later ones replace earlier ones."""
    if not path.exists():
        return {}
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text(encoding="utf-8")
    return {row["model"]: row for row in map(json.loads, text.splitlines())}


def keep(source: Path, kept: Path) -> None:
    """Put the last row of each model of a file into `benchmarks/results`, where rows of other models stay."""
    rows = read(kept) | read(source)
    text = "".join(json.dumps(rows[name]) + "\n" for name in sorted(rows))
    kept.write_bytes(gzip.compress(text.encode(), mtime=0))


def order(name: str) -> tuple[bool, bool, str]:
    """Attention first, small models first as far as names tell."""
    module = timm.model_entrypoint(name).__module__.rpartition(".")[2]
    large = any(word in name for word in ("large", "huge", "giant", "gigantic", "xlarge", "so400m"))
    return module in CONVOLUTIONAL and "hybrid" not in name, large, name


def wanted(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows up to `MOST_PARAMS` that run a token softmax for each head, and those of the others with FFNs."""
    small = [row for row in rows if row.get("params", MOST_PARAMS + 1) <= MOST_PARAMS]
    softmax = [row for row in small if any(map(is_token_softmax, row["softmax"]))]
    names = {row["model"] for row in softmax}
    return softmax, [row for row in small if row["model"] not in names and row["ffn"]]


def markdown(rows: list[dict[str, Any]], jobs: dict[str, dict[str, Any]], registered: int) -> str:
    """The counts, and the names of what is left over.

    Args:
        rows: what each architecture runs and what of it can be compacted.
        jobs: of those that went through `family_sweep.py`, what came of it.
    """
    softmax, others = wanted(rows)
    left = [row for row in softmax if not row["attention"]]
    passed = {name for name, job in jobs.items() if "error" not in job}
    millions = f"{MOST_PARAMS // 1_000_000} M"
    small = sum(row.get("params", MOST_PARAMS + 1) <= MOST_PARAMS for row in rows)
    done = [sum(row["model"] in passed for row in group) for group in (softmax, others)]
    same = sum(row["model"] in passed and "same_as" in jobs[row["model"]] for row in (*softmax, *others))
    lines = [
        f"timm {timm.__version__}: {len(rows)} of {registered} architectures were run, {small} of them of up to "
        f"{millions} parameters.",
        "",
        f"- {len(softmax)} of those run a softmax over tokens for each head (pooling and class attention aside); heads "
        f"of {len(softmax) - len(left)} are hallucinated ({1 - len(left) / max(len(softmax), 1):.1%}).",
        f"- {len(others)} of the others have FFNs, which compact.",
        f"- {done[0]} of the former and {done[1]} of the latter went through the whole job, cut down where they can be "
        "to two blocks a stage, narrow and on small images: convert, a training step, perturbed, folded (2e-4), "
        f"reloaded bit for bit, exported to `.pt2`. {same} of these are, cut down, module for module another that did.",
    ]
    failed = {name: job["error"] for name, job in jobs.items() if "error" in job}
    lines += [f"- `{name}` fails there: {error}" for name, error in sorted(failed.items())]
    lines += ["", "Left over, by the classes that run the softmax:", ""]
    groups: dict[str, list[str]] = defaultdict(list)
    for row in left:
        groups[", ".join(sorted(name for name in row["softmax"] if is_token_softmax(name)))].append(row["model"])
    for classes, names in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        first = attention_table().attention.get(classes.split(", ", maxsplit=1)[0])
        reason = "not classified" if first is None else first.reason
        lines.append(f"- `{classes}`: {reason}. {', '.join(f'`{name}`' for name in sorted(names))}")
    missing = [row for row in rows if "error" in row]
    if missing:
        lines += ["", "Not run: " + ", ".join(f"`{row['model']}` ({row['error']})" for row in missing) + "."]
    return "\n".join(lines) + "\n"


def recorded(registered: int) -> str:
    """The counts of what is kept in `benchmarks/results`."""
    rows = sorted(read(COVERAGE).values(), key=lambda row: row["model"])
    return markdown(rows, read(SWEEP), registered)


def main() -> None:
    """Look at the models that are missing in the file, or write the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="JSON lines, one a model")
    parser.add_argument("--models", nargs="+", metavar="NAME")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="only every N-th model, beginning with I")
    parser.add_argument("--keep", action="store_true", help="only put the file's rows into benchmarks/results")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the counts of results into this one")
    args = parser.parse_args()
    if args.markdown:
        counts = recorded(len(registered_models()))
        write_file(args.markdown, replaced(args.markdown.read_text(encoding="utf-8"), SECTION, counts))
        return
    if args.file is None:
        parser.error("which file?")
    if args.keep:
        return keep(args.file, COVERAGE)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    shard, of = map(int, args.shard.split("/"))
    seen = read(args.file)
    names = [name for name in sorted(args.models or registered_models(), key=order) if name not in seen]
    with args.file.open("a", encoding="utf-8") as stream:
        for count, name in enumerate(names[shard::of], 1):
            try:
                row = look(name)
            except Exception as error:  # any of a thousand models may refuse in its own way: it is listed
                row = {"model": name, "error": f"{type(error).__name__}: {error}"[:200]}
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            if count % 50 == 0:
                print(f"{count}/{len(names[shard::of])} {name}", file=sys.stderr)


if __name__ == "__main__":
    main()
