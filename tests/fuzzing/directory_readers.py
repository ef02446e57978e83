"""Readers of models' directories: timm's, ours, and those of other libraries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

import vitcompact
from vitcompact.checkpoint import load_source
from vitcompact.checkpoint.directory import load_directory
from vitcompact.checkpoint.record import read_record

from .mutate import Rng, hostile_document, of_the_system
from .reader import Read, Reader, verb
from .seeds import Seeds
from .tensor_files import hostile_safetensors
from .yaml_files import hostile_yaml


def _config(seeds: Seeds, folder: Path, rng: Rng, honest: Path, name: str = "config.json") -> Path:
    out = folder / "model"
    shutil.copytree(honest, out)
    document = json.loads((out / name).read_text())
    (out / name).unlink()
    if not of_the_system(out / name, rng):
        (out / name).write_bytes(hostile_document(document, rng))
    return out


def _timm_config(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    out = _config(seeds, folder, rng, seeds.timm_directory)
    if rng.random() < 0.05:
        return verb("eval", out, "--data-dir", seeds.images, "--num-samples", 1, "-q")
    return lambda: _used(load_source(str(out)).model)


def _used(model: Any) -> None:
    """Prepare one image for a model, and run it."""
    size = vitcompact.data.resolve_input(model).input_size
    vitcompact.data.eval_transform(vitcompact.data.resolve_input(model))
    vitcompact.data.check_model(model)
    if max(size) <= 64:
        vitcompact.data.check_images(model, torch.zeros(1, *size))


def _own_config(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    out = _config(seeds, folder, rng, seeds.converted)
    if rng.random() < 0.03:
        return verb("fold", out, folder / "out", "-q")
    return lambda: load_source(str(out))


def _record(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    out = _config(seeds, folder, rng, seeds.converted, "vitcompact.json")
    if rng.random() < 0.1:
        words = rng.choice(
            (("fold", out, folder / "out"), ("eval", out, "--data-dir", seeds.images, "--num-samples", 1))
        )
        return verb(*words, "-q")
    return lambda: read_record(out)


def _card(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    out = folder / "model"
    shutil.copytree(seeds.timm_directory, out)
    path = out / "README.md"
    if not of_the_system(path, rng):
        head = hostile_yaml({"license": "mit", "tags": ["x"], "library_name": "timm", "datasets": {"a": [1]}}, rng)
        path.write_bytes(b"---\n" + head + rng.choice((b"\n---\n", b"", b"---" * 10_000)) + b"# Title\n")
    return lambda: load_directory(out)


def _transformers(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    honest = seeds.transformers[rng.choice(sorted(seeds.transformers))]
    return _foreign(honest, "config.json", "model.safetensors", folder, rng)


def _open_clip(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    return _foreign(seeds.open_clip, "open_clip_config.json", "open_clip_model.safetensors", folder, rng)


PREPARATION = {
    **{"do_resize": True, "do_center_crop": True, "size": {"height": 32, "width": 32}, "crop_size": 32, "resample": 3},
    **{"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": True, "rescale_factor": 0.0039},
}


def _foreign(honest: Path, config: str, weights: str, folder: Path, rng: Rng) -> Read:
    out = folder / "model"
    shutil.copytree(honest, out)
    kind = rng.randrange(10)
    if kind < 6:
        document = json.loads((out / config).read_text())
        (out / config).unlink()
        if not of_the_system(out / config, rng):
            (out / config).write_bytes(hostile_document(document, rng))
    elif kind < 8:
        path = out / "preprocessor_config.json"
        path.unlink(missing_ok=True)
        if not of_the_system(path, rng):
            path.write_bytes(hostile_document(PREPARATION, rng))
    else:
        content = (out / weights).read_bytes()
        (out / weights).unlink()
        hostile_safetensors(out / weights, content, rng)
    return lambda: _used(load_source(str(out)).model)


READERS = (
    Reader("timm config", _timm_config, 9),
    Reader("own config", _own_config, 9),
    Reader("record", _record, 8),
    Reader("card", _card, 3),
    Reader("transformers", _transformers, 6, ("transformers",)),
    Reader("open_clip", _open_clip, 3),
)
