"""The commands that are interrupted, each in a folder of its own with a small model and a few images."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from PIL import Image
from timm.models._hub import save_for_hf
from torch import nn

import vitcompact
from vitcompact.calibration import store
from vitcompact.cli.app import main
from vitcompact.errors import UsageError
from vitcompact.surgery import calibrated
from vitcompact.training.loop import Loop

NEW = "source"
INTERRUPTED = 130
SIZES = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 32, "num_heads": 4}
JOB = (f"analyze {NEW} --data-dir images --method pair", "convert --ratio 0.5")
LESS = "--ratio 0.5 --rank-ratio 0.3"


@dataclass(frozen=True)
class Case:
    """One command that writes.

    Attributes:
        words: the command; `python` calls `save` from Python, `stopped` ends a training after its first step.
        before: commands that prepare its folder.
        again: what is run after an end of it, where that is not the command itself with --overwrite.
        beside: another command, which takes the place of the second run of this one.
        spills: activations go to the folder for temporary files.
    """

    words: str
    before: tuple[str, ...] = ()
    again: str | None = None
    beside: str | None = None
    spills: bool = False

    @property
    def next(self) -> str:
        """The command that comes after an end."""
        return self.again or self.words.replace(" --overwrite", "") + " --overwrite"


CASES: dict[str, Case] = {
    "convert": Case(f"convert {NEW} out --method pair --data-dir images"),
    "convert, spilling": Case(f"convert {NEW} out --method pair --data-dir images", spills=True),
    "convert over": Case(
        f"convert {NEW} out {LESS} --data-dir images --overwrite",
        (f"convert {NEW} out --method pair --data-dir images",),
    ),
    "convert, workspace": Case("convert --ratio 0.5", JOB[:1]),
    "convert over, workspace": Case(f"convert {LESS} --overwrite", JOB),
    "convert --dry-run": Case(f"convert {LESS} --dry-run", JOB, again=f"convert {LESS} --dry-run"),
    "finetune": Case(
        "finetune --steps 3 -b 4",
        JOB,
        again="finetune --steps 3 -b 4 --resume auto --overwrite",
    ),
    "finetune again": Case(
        "finetune --steps 2 -b 4 --overwrite",
        (*JOB, "finetune --steps 3 -b 4"),
    ),
    "finetune resumed": Case(
        "finetune --resume auto",
        (*JOB, "stopped finetune --steps 3 -b 4"),
        again="finetune --resume auto --overwrite",
    ),
    "fold": Case("fold", JOB),
    "fold over": Case("fold --overwrite", (*JOB, "fold", f"convert {LESS} --overwrite")),
    "analyze": Case(
        f"analyze {NEW} --data-dir images --method pair --report report.html",
        again=f"analyze {NEW} --data-dir images --method pair --report report.html",
    ),
    "analyze again": Case(
        f"analyze {NEW} --data-dir images {LESS} --report report.html",
        (f"analyze {NEW} --data-dir images --method pair --report report.html",),
        again=f"analyze {NEW} --data-dir images {LESS} --report report.html",
    ),
    "compact": Case("compact plain --data-dir images --macs 0.9 --export onnx"),
    "compact over": Case(
        "compact plain --data-dir images --macs 0.8 --export onnx --overwrite",
        ("compact plain --data-dir images --macs 0.9 --export onnx",),
    ),
    "export .onnx": Case(f"export {NEW} model.onnx"),
    "export .onnx over": Case(
        "export out model.onnx --overwrite",
        (f"convert {NEW} made --method pair --data-dir images", "fold made out", f"export {NEW} model.onnx"),
    ),
    "export .onnx over, two files": Case(
        "export out large.onnx --overwrite",
        (f"convert {NEW} made --method pair --data-dir images", "fold made out", f"export {NEW} large.onnx"),
    ),
    "export .pt2 over": Case(
        "export out model.pt2 --overwrite",
        (f"convert {NEW} made --method pair --data-dir images", "fold made out", f"export {NEW} model.pt2"),
    ),
    "export --int8": Case(f"export {NEW} model.onnx --int8 --data-dir images"),
    "compare": Case(
        "compare made out --report page.html --num-pairs 2",
        (f"convert {NEW} made --method pair --data-dir images", "fold made out"),
        again="compare made out --report page.html --num-pairs 2",
    ),
    "bench --backend": Case(
        "bench made --backend onnxruntime --num-pairs 2 -b 1",
        (f"convert {NEW} made0 --method pair --data-dir images", "fold made0 made"),
        again="bench made --backend onnxruntime --num-pairs 2 -b 1",
    ),
    "eval": Case(
        "eval out --data-dir images/val",
        (f"convert {NEW} out --method pair --data-dir images",),
        again="eval out --data-dir images/val",
    ),
    "eval --report": Case(
        "eval out --data-dir images/val --report page.html",
        (f"convert {NEW} out --method pair --data-dir images",),
        again="eval out --data-dir images/val --report page.html",
    ),
    "convert, analyze beside": Case(
        f"convert {LESS} --overwrite", JOB, beside=f"analyze {NEW} --data-dir images {LESS}"
    ),
    "finetune, convert beside": Case(
        "finetune --steps 2 -b 4 --overwrite",
        (*JOB, "finetune --steps 3 -b 4"),
        beside=f"convert {LESS} --overwrite",
    ),
    "fold, convert beside": Case("fold --overwrite", (*JOB, "fold"), beside=f"convert {LESS} --overwrite"),
    "compact, fold beside": Case(
        "compact plain --data-dir images --macs 0.9 --overwrite", (*JOB, "fold"), beside="fold --overwrite"
    ),
    "save in Python": Case("python out", again="python out --overwrite"),
    "save in Python, over": Case("python out --overwrite", ("python first",)),
}


def run(words: str, case: Case) -> int:
    """Run one command of a case in the current folder; returns its exit code."""
    if case.spills:
        calibrated.ActivationStore = lambda limit: store.ActivationStore(0)  # type: ignore[assignment,misc]
    if words.startswith("python"):
        return _saved(words.split())
    if "finetune" in words:
        _always_evaluated()
    if words.startswith("stopped "):
        return _stopped(words.removeprefix("stopped "))
    return main([*shlex.split(words), "--quiet", "--json"])


def _saved(words: Sequence[str]) -> int:
    """`save`, of another model where the words say `first`."""
    torch.manual_seed(3 + ("first" in words))
    try:
        vitcompact.save(_model(), "out", overwrite="--overwrite" in words)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return 0


def _stopped(words: str) -> int:
    """A training that is asked to end during its first step, and keeps its state; 0 where it did."""
    plain: Any = Loop._one_step

    def step(loop: Loop, *batch: Any) -> None:
        loop.stop.requested = True
        plain(loop, *batch)

    cast(Any, Loop)._one_step = step
    return int(main([*shlex.split(words), "--quiet", "--json"]) != INTERRUPTED)


def _always_evaluated() -> None:
    """Trainings evaluate at the end of each epoch, whatever time that takes: so they all leave the same."""
    plain: Any = Loop.run

    def run(loop: Loop) -> None:
        loop.options = replace(loop.options, eval_every=1, eval_share=1)
        plain(loop)

    cast(Any, Loop).run = run


def _model() -> nn.Module:
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=2, **SIZES)
    return model


def furnish(box: Path) -> None:
    """Put a model, images and somebody's own files into a folder."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            (box / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(box / "images" / split / name / f"{i}.png")
    torch.manual_seed(0)
    vitcompact.save(_model(), box / "source")
    save_for_hf(_model(), str(box / "plain"), model_args=SIZES)
    (box / "mine").mkdir()
    (box / "mine" / "notes.txt").write_text("of somebody", encoding="utf-8")
