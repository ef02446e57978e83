"""Readers of options in files: YAML for every verb, recipes, and the documents of earlier commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from vitcompact.options.recipes import NAMES, recipe_text

from .mutate import Rng, hostile_document, of_the_system
from .reader import Read, Reader, verb
from .seeds import Seeds
from .yaml_files import hostile_yaml

CONFIG: dict[str, Any] = {
    **{"ratio": 0.5, "rank_ratio": 0.5, "data_dir": "images", "num_samples": 8, "batch_size": 4, "mean": [0.5] * 3},
    **{"seed": 1, "img_size": 32, "exclude": ["blocks.0"], "model_kwargs": {"depth": 1}, "dry_run": True},
    "device": "cpu",
}
OF_VERBS: dict[str, dict[str, Any]] = {
    "analyze": {"data-dir": "images", "target-macs": 0.8, "ops": "factorize,neurons", "protect": ["blocks.0"]},
    "convert": CONFIG,
    "finetune": {"steps": 4, "lr": 1e-3, "opt": "adamw", "batch_size": 4, "epochs": None, "color_jitter": 0.4},
    "fold": {"merge_tokens": 4, "input_size": [3, 32, 32], "dtype": "float32"},
    "eval": {"data_dir": "images", "split": "val", "reference": "other", "crop_pct": 0.9, "batch-size": 2},
    "bench": {"batch_size": 1, "num-pairs": 2, "threads": 1, "amp_dtype": "bfloat16", "backend": "torch"},
    "export": {"int8": True, "opset": 18, "data_dir": "images", "fp16": False},
}
RECIPE = {"max_drop": 0.5, "export": "onnx", "protect": ["blocks.0"], "seed": 0, "num_samples": 64, "report": "r.html"}


def _words(name: str, folder: Path, *more: object) -> Read:
    """A verb on a model that is not there: only its options are read."""
    (folder / "exists").mkdir()
    out: dict[str, tuple[Path, ...]] = {"analyze": (), "eval": (), "bench": (), "export": (folder / "x.onnx",)}
    return verb(name, "nowhere.pth", *out.get(name, (folder / "exists",)), *more)


def _options(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    path = folder / "job.yaml"
    name = rng.choice(("convert", *OF_VERBS))
    if not of_the_system(path, rng):
        options = OF_VERBS[name]
        documents = rng.random() < 0.2
        path.write_bytes(hostile_document({"options": options}, rng) if documents else hostile_yaml(options, rng))
    return _words(name, folder, "--config", path, "-q")


def _recipe(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    """A recipe of `compact` as the shipped ones are, with more options now and then."""
    path = folder / rng.choice(("recipe.yaml", "gentle", "small.yml"))
    if not of_the_system(path, rng):
        honest = yaml.safe_load(recipe_text(rng.choice(NAMES)))
        path.write_bytes(hostile_yaml({**honest, **(RECIPE if rng.random() < 0.7 else {})}, rng))
    return _words("compact", folder, "--config", path, "-q")


def _document(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    """The record of a model, or an analysis, as configuration of the command that is to be repeated."""
    path, job = folder / "before.json", seeds.job / "vitcompact-out"
    record = json.loads((job / "converted" / "vitcompact.json").read_text())
    analysis = json.loads((job / "analysis.json").read_text())
    name, honest = rng.choice((("convert", record), ("finetune", record), ("analyze", analysis)))
    if not of_the_system(path, rng):
        path.write_bytes(hostile_document(honest, rng))
    return _words(name, folder, "--config", path, "-q")


READERS = (
    Reader("options", _options, 6),
    Reader("recipe", _recipe, 4),
    Reader("document", _document, 3),
)
