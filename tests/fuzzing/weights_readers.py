"""Readers of weights, and of what lies beside bare ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml

import vitcompact
from vitcompact.checkpoint import load_source

from .flax_files import hostile_npz
from .mutate import Rng, hostile_document, of_the_system
from .pickle_files import hostile_pickle
from .reader import Read, Reader, verb
from .seeds import ARCHITECTURE, OPTIONS, Seeds
from .tensor_files import hostile_safetensors
from .yaml_files import hostile_yaml


def _safetensors(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    path = folder / "x.safetensors"
    hostile_safetensors(path, seeds.weights.read_bytes(), rng)
    options = OPTIONS if rng.random() < 0.8 else None
    if rng.random() < 0.03:
        arguments = [f"{key}={value}" for key, value in (OPTIONS.model_kwargs or {}).items()]
        command = ["convert", path, folder / "out", "--model", ARCHITECTURE, "--model-kwargs", *arguments]
        return verb(*command, "--ratio", "0.5", "--dry-run", "-q")
    return lambda: load_source(str(path), options)


def _torch(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    path = folder / f"x{rng.choice(('.pth', '.pt', '.bin', '.ckpt', '.pth.tar'))}"
    hostile_pickle(path, seeds.state, seeds.script, rng)
    (folder / "evil.py").write_text("open('EXECUTED', 'w').close()\n")
    options = OPTIONS if rng.random() < 0.8 else None
    return lambda: load_source(str(path), options)


def _flax(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    path = folder / "x.npz"
    hostile_npz(path, seeds.google, rng)
    options = OPTIONS if rng.random() < 0.8 else None
    return lambda: load_source(str(path), options)


def _index(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    index = seeds.shards(folder)
    document = json.loads(index.read_text())
    if rng.random() < 0.7:
        index.unlink()
        if not of_the_system(index, rng):
            index.write_bytes(hostile_document(document, rng))
    else:
        shard = folder / rng.choice(sorted(set(document["weight_map"].values())))
        content = shard.read_bytes()
        shard.unlink()
        hostile_safetensors(shard, content, rng)
    return lambda: load_source(str(index), OPTIONS)


ARGS_YAML = {
    **{"model": ARCHITECTURE, "num_classes": 2, "img_size": 32, "input_size": [3, 32, 32], "mean": [0.5, 0.5, 0.5]},
    **{"std": [0.5, 0.5, 0.5], "crop_pct": 0.9, "interpolation": "bicubic", "class_map": "classes.txt", "gp": "token"},
    "model_kwargs": {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 16},
}


def _beside(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    """Files of a training script beside bare weights."""
    path = folder / "x.safetensors"
    shutil.copy(seeds.weights, path)
    settings, classes = folder / "args.yaml", folder / "classes.txt"
    classes.write_text("ant\nbee\n")
    if rng.random() < 0.2:
        classes.unlink()
        if not of_the_system(classes, rng):
            classes.write_bytes(rng.choice((b"\xff" * 99, b"\x1b[31m\n\x1b[0m\n", b"\n" * 10**6, b"", b"<b>\n</b>\n")))
        settings.write_text(yaml.safe_dump(ARGS_YAML))
    elif not of_the_system(settings, rng):
        settings.write_bytes(hostile_yaml(ARGS_YAML, rng))
    options = vitcompact.checkpoint.SourceOptions(model=ARCHITECTURE) if rng.random() < 0.3 else None
    return lambda: load_source(str(path), options)


READERS = (
    Reader("safetensors", _safetensors, 14),
    Reader("torch", _torch, 20),
    Reader("flax", _flax, 6),
    Reader("index", _index, 6),
    Reader("beside", _beside, 6),
)
