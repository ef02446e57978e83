"""Every registered model of the families beyond plain attention: convert, train a step, perturb, fold, reload.

    python benchmarks/family_sweep.py sweep.jsonl                     # goes on where it stopped; hours on one core
    python benchmarks/family_sweep.py sweep.jsonl --models pvt_v2_b0 eva02_tiny_patch14_224

Random weights, perturbed, and a few random images; one JSON line a model. A model passes when folding keeps its outputs
within 2e-4 relative (on its own and on perturbed weights) and timm reloads the folded model bit for bit. Models that
fail are listed with their error and tried again by the next run; the exit code is 1 if there are any.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import vitcompact
from vitcompact.data import resolve_input
from vitcompact.folding.verify import FoldParity, perturbed
from vitcompact.models import inspect
from vitcompact.plans.schema import Plan

MODULES = (
    *("pvt_v2", "twins", "nextvit", "swin_transformer", "swin_transformer_v2", "eva", "beit", "deit", "visformer"),
    *("deepseek_vit", "qwen3_vit", "naflexvit"),
)
MAX_PARAMS = 100e6
LARGEST_SIDE = 256
"""Models made for larger images are built for this many pixels where they take `img_size`: time, not coverage."""


def candidates() -> list[str]:
    """Names of the families' models, smallest parameter count first."""
    sizes = {}
    for module in MODULES:
        for name in timm.list_models(module=module):
            with torch.device("meta"):
                model = timm.create_model(name, pretrained=False)
            sizes[name] = sum(p.numel() for p in model.parameters())
    return sorted((name for name in sizes if sizes[name] <= MAX_PARAMS), key=lambda name: sizes[name])


def build(name: str) -> nn.Module:
    """A model with random, perturbed weights."""
    kwargs: dict[str, Any] = {"num_classes": 7, "drop_path_rate": 0.0}
    side = timm.get_pretrained_cfg(name).input_size[-1]
    if side > LARGEST_SIDE:
        kwargs["img_size"] = side * LARGEST_SIDE // side // 32 * 32 if side % 14 else 224
    torch.manual_seed(0)
    try:
        model = timm.create_model(name, pretrained=False, **kwargs)
    except TypeError:
        kwargs.pop("img_size", None)
        model = timm.create_model(name, pretrained=False, **kwargs)
    model = perturbed(model, seed=1)
    update_bn([images_for(model, seed=1)], model)  # outputs of deep nets would explode
    return model.eval()


def images_for(model: nn.Module, seed: int, count: int = 4) -> Tensor:
    """Noise of the size that the model was built for."""
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    channels, height, width = resolve_input(model).input_size
    height, width = size or (height, width)
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def check(name: str) -> dict[str, Any]:
    """The whole job on one model; raises whatever goes wrong."""
    original = build(name)
    images = images_for(original, seed=2)
    anatomy = inspect(original)
    compact = vitcompact.convert(original, images=images)
    plan = cast(Plan, compact.vitcompact_plan)
    assert len(plan.layers) > 0
    compact.train()
    optimizer = torch.optim.SGD(compact.parameters(), lr=1e-3)
    compact(images).square().mean().backward()
    torch.nn.utils.clip_grad_norm_(compact.parameters(), 1.0, error_if_nonfinite=True)  # as `finetune` does
    optimizer.step()
    moved = perturbed(compact, seed=3)
    update_bn([images], moved)
    moved.eval()
    folded = vitcompact.fold(moved, images=images)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        out = vitcompact.save(folded, Path(folder, "out"))
        again = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
        same = torch.equal(again(images), folded(images))
        state = again.state_dict()
        same &= all(torch.equal(value, state[key]) for key, value in folded.state_dict().items())
    if not same:
        raise RuntimeError("the reloaded model is not bit-exact")
    return {
        "params": sum(p.numel() for p in original.parameters()),
        "folded_params": sum(p.numel() for p in folded.parameters()),
        "attention": len(anatomy.attention),
        "ffn": len(anatomy.ffn),
        "skipped": dict(Counter(item.reason for item in plan.skipped)),
        "rel_diff": cast(FoldParity, folded.vitcompact_parity).rel_diff,
        "reload": "bit-exact",
    }


def done(path: Path) -> set[str]:
    """Models that an earlier run has passed."""
    if not path.exists():
        return set()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["model"] for line in lines if "error" not in line}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON lines; models already in it are not run again")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only these timm models")
    args = parser.parse_args()
    passed = done(args.out)
    failures = 0
    with args.out.open("a", encoding="utf-8") as stream:
        for name in args.models or candidates():
            if name in passed:
                continue
            start = time.perf_counter()
            line: dict[str, Any] = {"model": name}
            try:
                line |= check(name)
            except Exception as error:  # whatever one model does, the others are to be run
                line["error"] = f"{type(error).__name__}: {error}"
                failures += 1
            line["seconds"] = round(time.perf_counter() - start, 1)
            stream.write(json.dumps(line) + "\n")
            stream.flush()
            print(json.dumps(line), flush=True)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
