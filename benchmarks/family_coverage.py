"""What timm's models run, and what of it compacts: found by running each architecture without memory.

    python benchmarks/family_coverage.py coverage.jsonl                  # goes on where it stopped
    python benchmarks/family_coverage.py coverage.jsonl --shard 0/2      # every second model, for two processes
    python benchmarks/family_coverage.py coverage.jsonl --markdown docs/families.md   # the counts, between the markers

Models are built and run on the meta device while softmaxes and attention kernels are watched: which module class calls
them, on tensors of which shape. A class runs a softmax over tokens for each head if the table of attention classes says
that it is of that kind; of the others that call a softmax it says what they are. One JSON line a model.
"""

from __future__ import annotations

import argparse
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
WANTED = 0.97
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
    """The rows of a file by model; later ones replace earlier ones."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {row["model"]: row for row in map(json.loads, lines)}


def order(name: str) -> tuple[bool, bool, str]:
    """Attention first, small models first as far as names tell."""
    module = timm.model_entrypoint(name).__module__.rpartition(".")[2]
    large = any(word in name for word in ("large", "huge", "giant", "gigantic", "xlarge", "so400m"))
    return module in CONVOLUTIONAL and "hybrid" not in name, large, name


def markdown(rows: list[dict[str, Any]], registered: int) -> str:
    """The counts, and the names of what is left over."""
    built = [row for row in rows if "error" not in row]
    small = [row for row in built if row["params"] <= MOST_PARAMS]
    softmax = [row for row in small if any(map(is_token_softmax, row["softmax"]))]
    others = [row for row in small if row not in softmax and row["ffn"]]
    left = [row for row in softmax if not row["attention"]]
    lines = [
        f"timm {timm.__version__}: {len(rows)} of {registered} architectures were run, {len(small)} of them of up to "
        f"{MOST_PARAMS // 1_000_000} M parameters.",
        "",
        f"- {len(softmax)} of those run a softmax over tokens for each head (pooling and class attention aside); heads "
        f"of {len(softmax) - len(left)} are hallucinated ({1 - len(left) / max(len(softmax), 1):.1%}).",
        f"- {len(others)} of the others have FFNs that compact.",
        "",
        "Left over, by the classes that run the softmax:",
        "",
    ]
    groups: dict[str, list[str]] = defaultdict(list)
    for row in left:
        groups[", ".join(sorted(name for name in row["softmax"] if is_token_softmax(name)))].append(row["model"])
    for classes, names in sorted(groups.items(), key=lambda item: -len(item[1])):
        first = attention_table().attention.get(classes.split(", ", maxsplit=1)[0])
        reason = "not classified" if first is None else first.reason
        lines.append(f"- `{classes}`: {reason}. {', '.join(f'`{name}`' for name in names)}")
    failed = [row for row in rows if "error" in row]
    if failed:
        lines += ["", "Not run: " + ", ".join(f"`{row['model']}` ({row['error']})" for row in failed) + "."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Look at the models that are missing in the file, or write the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSON lines, one a model")
    parser.add_argument("--models", nargs="+", metavar="NAME")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="only every N-th model, beginning with I")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the counts of the file into this one")
    args = parser.parse_args()
    if args.markdown:
        counts = markdown(list(read(args.file).values()), len(registered_models()))
        write_file(args.markdown, replaced(args.markdown.read_text(encoding="utf-8"), SECTION, counts))
        return
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
