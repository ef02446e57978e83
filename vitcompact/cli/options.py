"""The verbs and what each takes: options of the library (`vitcompact.options`), and the command line's own few."""

# ruff: noqa: RUF009  (option() returns a dataclasses.field, which every class gets anew)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitcompact.cli.command import Verb, pick
from vitcompact.cli.spoken import learn
from vitcompact.options.benchmarking import BenchOptions
from vitcompact.options.compaction import CompactionOptions
from vitcompact.options.data import Augment, DataOptions
from vitcompact.options.declare import (
    COMPACTION,
    IMAGES,
    MEASUREMENT,
    MESSAGES,
    MODEL,
    OUTPUT,
    RUN,
    TARGET,
    TRAINING,
    declared,
    option,
)
from vitcompact.options.evaluation import ProbeOptions
from vitcompact.options.exporting import ExportOptions
from vitcompact.options.logs import LogOptions
from vitcompact.options.recipes import NAMES as RECIPES
from vitcompact.options.selection import LimitOptions, SelectionOptions
from vitcompact.options.shared import Distributed, MixedPrecision
from vitcompact.options.source import SourceOptions
from vitcompact.options.surgery import SurgeryOptions
from vitcompact.options.training import TrainOptions


@dataclass(frozen=True, kw_only=True)
class Own:
    """Options of the command line itself: of files, streams and devices."""

    checkpoint: str | None = option(
        None, "Weights file to read with --model: another way to give SOURCE.", MODEL, "FILE", rare=True
    )
    teacher: str | None = option(None, "The original to learn from.", MODEL, "SOURCE", unset="the recorded original")
    eval_data_dir: str | None = option(
        None, "Evaluation images, where they are not a split of --data-dir.", IMAGES, "PATH"
    )
    method: Literal["budget", "pair"] | None = option(
        None,
        "What to do where no share is given: budget is --target-macs 0.8, pair is --ratio 0.5 --rank-ratio 0.5, the "
        "paper's pair.",
        TARGET,
        unset="budget with images, pair without",
    )
    plan: Path | None = option(None, "Apply this plan.json instead of choosing what to compact.", COMPACTION, "FILE")
    resume: str | None = option(None, "Continue an interrupted run; auto finds its state.", TRAINING, "PATH|auto")
    reference: str | None = option(None, "Model to compare with.", MEASUREMENT, "SOURCE", unset="the recorded original")
    baseline: str | None = option(None, "Model to compare with.", MEASUREMENT, "SOURCE", unset="the recorded original")
    min_speedup: float | None = option(
        None, "Exit with 6 if the speed-up at the largest batch size is below.", MEASUREMENT, "FACTOR"
    )
    device: str = option("cpu", "Device to run on: cpu, cuda, cuda:1, mps, or auto for the best of them.", RUN, "NAME")
    dtype: Literal["float32", "float16", "bfloat16"] | None = option(
        None, "Number format of the weights.", RUN, unset="that of the source; float32 in bench", rare=True
    )
    report: Path | None = option(
        None, "Draw what was found into a .html file; analyze and compact draw .png too.", OUTPUT, "FILE"
    )
    export: Literal["onnx", "pt2", "xml", "mlpackage", "pte"] | None = option(
        None, "Also write the folded model for another runtime, into a file beside OUT (see export).", OUTPUT
    )
    dry_run: bool = option(False, "Print and write the plan, nothing else; of push, list the files.", OUTPUT)
    private: bool = option(False, "Make a new repository private.", OUTPUT)
    revision: str | None = option(None, "Branch to push to, made where there is none.", OUTPUT, "NAME", unset="main")
    overwrite: bool = option(False, "Replace an output that exists.", OUTPUT)
    workdir: Path = option(
        Path("vitcompact-out"), "Workspace that chains analyze, convert, finetune and fold.", OUTPUT, "DIR"
    )
    json: bool = option(False, "Print one JSON document on stdout.", MESSAGES)
    quiet: bool = option(False, "No notes and no progress, only warnings and errors.", MESSAGES, short="q")
    verbose: bool = option(False, "More messages; full tracebacks of errors.", MESSAGES, short="v")
    config: Path | None = option(
        None,
        f"YAML file whose keys are option names, or a recipe of compact that comes with the package "
        f"({', '.join(RECIPES)}); the command line wins. A vitcompact.json, or the --json output of an earlier run, "
        "repeats that run's options.",
        MESSAGES,
        "FILE",
    )


_SOURCE = "A timm name, hf-hub:ORG/NAME, a directory in timm's hub layout, or a weights file with --model."
_MODEL = ("MODEL", f"{_SOURCE} By default the workspace's latest.")
_ALL_IMAGES = pick(DataOptions, *(name for name in declared(DataOptions) if name not in ("num_samples", "cache_mb")))


def _own(names: str = "") -> type:
    return pick(Own, *names.split(), "json", "quiet", "verbose", "config")


def _out(stage: str) -> tuple[str, str]:
    return "OUT", f"Directory to write; by default '{stage}' in the workspace."


VERBS = (
    Verb(
        "compact",
        """Make a model faster or smaller in one command: plan, convert, judge, train where needed, fold, time.

        A size (--speedup, --macs, --params or --preset), a largest loss (--max-drop), or one of each.

        Example: vitcompact compact vit_small_patch16_224 --data-dir images --speedup 1.5 --max-drop 0.5""",
        (
            SourceOptions,
            DataOptions,
            CompactionOptions,
            pick(SelectionOptions, "merge_tokens", "protect", "size_multiple"),
            _own("checkpoint eval_data_dir device report export workdir overwrite dtype"),
        ),
        arguments={"source": ("SOURCE", f"{_SOURCE} By default what was analyzed."), "out": _out("folded")},
        defaults={"num_samples": 512},
    ),
    Verb(
        "analyze",
        """Look at a model: how alike its attention heads are, what its FFNs need, and what compaction would save.

        Example: vitcompact analyze vit_small_patch16_224 --data-dir images --report analysis.html""",
        (
            SourceOptions,
            DataOptions,
            SelectionOptions,
            Distributed,
            _own("method checkpoint eval_data_dir device report workdir"),
        ),
        arguments={"source": ("SOURCE", _SOURCE)},
        defaults={"num_samples": 512},
    ),
    Verb(
        "convert",
        """Make a model smaller, in closed form on calibration images: a budget spent over all layers, or the pair.

        Without images the weights alone decide, which costs far more accuracy.

        Example, by itself: vitcompact convert vit_small_patch16_224 OUT --data-dir images --target-macs 0.7

        Example, after analyze: vitcompact convert --ratio 0.5""",
        (
            SourceOptions,
            DataOptions,
            SelectionOptions,
            LimitOptions,
            SurgeryOptions,
            Distributed,
            _own("method checkpoint eval_data_dir device plan dry_run report workdir overwrite dtype"),
        ),
        arguments={"source": ("SOURCE", f"{_SOURCE} By default what was analyzed."), "out": _out("converted")},
        defaults={"num_samples": 512},
    ),
    Verb(
        "finetune",
        """Distil a converted model from its original for a few minutes. Labels are not needed.

        Stops after --epochs, --steps or --max-minutes, whichever comes first (10 minutes where none is given). Ctrl-C
        keeps a state from which --resume auto continues.

        Example: vitcompact finetune --max-minutes 10 --eval-data-dir val""",
        (
            DataOptions,
            TrainOptions,
            Augment,
            LogOptions,
            Distributed,
            _own("teacher eval_data_dir resume device workdir overwrite dtype"),
        ),
        arguments={
            "source": ("MODEL", "A converted model; by default 'converted' in the workspace."),
            "out": _out("finetuned"),
        },
    ),
    Verb(
        "fold",
        """Merge training branches into plain layers, prove that nothing changed, and save. Needs no images.

        The proof compares outputs in float32, on the model's own and on perturbed weights, before any cast to --dtype.

        --merge-tokens goes further and changes outputs, after the proof: how much is measured on --data-dir, or on the
        images that the workspace recorded. A MODEL that was never converted is taken too.

        Example: vitcompact fold --merge-tokens 8""",
        (_ALL_IMAGES, pick(SelectionOptions, "merge_tokens"), _own("eval_data_dir workdir overwrite dtype")),
        arguments={
            "source": ("MODEL", "A converted or finetuned model; by default the workspace's latest."),
            "out": _out("folded"),
        },
    ),
    Verb(
        "export",
        """Write a folded model for another runtime: .onnx, .pt2, .xml (OpenVINO), .mlpackage (Core ML) or .pte.

        Before the file gets its name, its own runtime is compared with PyTorch on 1, 3 and 8 images. FILE alone
        exports the workspace's latest.

        Example: vitcompact export vitcompact-out/folded model.onnx

        Example: vitcompact export vitcompact-out/folded model-int8.onnx --int8 --data-dir images""",
        (DataOptions, ExportOptions, _own("workdir overwrite")),
        arguments={
            "source": ("MODEL", "A folded model, or any timm model. By default the workspace's latest."),
            "out": ("FILE", "File to write; its suffix says the format."),
        },
        defaults={"num_samples": 512},
    ),
    Verb(
        "eval",
        """Measure top-1 and top-5 of a model beside its original: what was lost, and how sure that is.

        A model without a head is compared with its original, or with --reference, by its features; --probe judges
        features by the classes that neighbours or a linear layer read off them.

        Example: vitcompact eval vitcompact-out/folded --data-dir val

        Example: vitcompact eval OUT --data-dir val --probe knn --probe-data-dir train""",
        (
            SourceOptions,
            DataOptions,
            ProbeOptions,
            MixedPrecision,
            Distributed,
            _own("checkpoint eval_data_dir reference device report workdir"),
        ),
        arguments={"source": _MODEL},
        defaults={"amp": False},
    ),
    Verb(
        "bench",
        """Time a model against its original, alternately in one process, on random images.

        Example: vitcompact bench vitcompact-out/folded -b 1 8 32 --min-speedup 1.1""",
        (SourceOptions, BenchOptions, MixedPrecision, _own("checkpoint baseline min_speedup device dtype workdir")),
        arguments={"source": _MODEL},
        defaults={"amp": False},
    ),
    Verb(
        "compare",
        """Put several models beside each other: scores on the same images, speed in one process, cost, file size.

        The first is what the others are compared with.

        Example: vitcompact compare CKPT out-gentle out-small --data-dir val --report compared.html""",
        (
            pick(SourceOptions, "img_size"),
            DataOptions,
            pick(BenchOptions, "num_pairs"),
            _own("eval_data_dir device report"),
        ),
        arguments={"sources": ("MODEL", f"{_SOURCE} Two or more.")},
        several="sources",
    ),
    Verb(
        "push",
        """Upload a folded model to the Hugging Face hub, with its card and its record.

        The account is the one that 'hf auth login' or HF_TOKEN names; no token is shown or kept.

        Example: vitcompact push ORG/NAME --dry-run""",
        (_own("private revision dry_run workdir"),),
        arguments={
            "repo": ("REPO", "ORG/NAME, made where there is none."),
            "source": ("MODEL", "A directory that fold or compact wrote; by default 'folded' in the workspace."),
        },
    ),
    Verb(
        "families",
        """List every attention class of the installed timm: supported, or skipped and why.

        Of a MODEL, say what of it is compacted, layer by layer, and why the rest is not; a timm name needs no download.

        Example: vitcompact families vit_small_patch16_224""",
        (SourceOptions, _own("")),
        arguments={"source": ("MODEL", f"{_SOURCE} Without it, the whole list.")},
    ),
    Verb(
        "demo",
        "Do the whole job on a small bundled model and real images: offline, in under a minute.",
        (_own("overwrite workdir"),),
    ),
)

for _verb in VERBS:
    learn(_verb.options)
