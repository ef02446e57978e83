"""Readers of what a job is made of: plans, workspaces, kept curves, training states, names of files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

import vitcompact
from vitcompact.checkpoint import load_source
from vitcompact.checkpoint.record import read_record
from vitcompact.data import CalibrationImages, DataOptions
from vitcompact.exporting import open_exported
from vitcompact.plans.schema import Plan
from vitcompact.training import TrainOptions, finetune

from .image_files import picture
from .mutate import Rng, changed, hostile_document, of_the_system, written, wrong
from .reader import Read, Reader, verb
from .seeds import Seeds
from .tensor_files import hostile_safetensors, join, split


def _plan(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    path = folder / "plan.json"
    document = read_record(seeds.converted).plan.to_json()
    document["layers"][0]["operators"] += rng.choice(
        ([], [{"op": "thin-qk", "qk_dim": 8}], [{"op": "thin-vo", "v_dim": 8}])
    )
    document["merge_tokens"] = rng.choice(([1], [0], [9]))
    if not of_the_system(path, rng):
        path.write_bytes(hostile_document(document, rng))
    if rng.random() < 0.03:
        return verb("convert", seeds.timm_directory, folder / "out", "--plan", path, "--dry-run", "-q")
    return lambda: vitcompact.convert(seeds.model, plan=Plan.load(path))


def _workspace(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    out = folder / "vitcompact-out"
    shutil.copytree(seeds.job / "vitcompact-out", out)
    path = out / rng.choice(("workspace.json", "workspace.json", "workspace.json", "analysis.json", "plan.json"))
    document = json.loads(path.read_text())
    path.unlink()
    if not of_the_system(path, rng):
        path.write_bytes(hostile_document(document, rng))
    words = rng.choice(
        (("fold",), ("convert",), ("finetune",), ("analyze", "nowhere.pth"), ("eval", "--num-samples", 1))
    )
    return verb(*words, "--workdir", out, "-q")


def _curves(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    """Kept curves with the key that they were written with, mostly: else they are measured anew."""
    path = folder / "curves.json"
    honest = json.loads(seeds.curves.read_text())
    if not of_the_system(path, rng):
        document = changed(honest, rng)
        if isinstance(document, dict) and rng.random() < 0.9:
            document |= {"format": honest["format"], "key": honest["key"]}
        path.write_bytes(written(document, rng))
    asked: dict[str, Any] = {"images": seeds.tensor, "target_macs": 0.9, "curves": vitcompact.Curves(path)}
    do: Any = rng.choice((vitcompact.plan, vitcompact.plan, vitcompact.convert, vitcompact.analyze))
    return lambda: do(seeds.model, **asked)


def _state(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    honest = seeds.job / "vitcompact-out" / "finetune-state"
    state = folder / "state"
    shutil.copytree(honest, state)
    name = rng.choice(("last.safetensors", "last.safetensors", "last.safetensors", "options.json"))
    path = state / name
    content = path.read_bytes()
    if name == "options.json":
        path.unlink()
        if not of_the_system(path, rng):
            path.write_bytes(hostile_document(json.loads(content), rng))
        model = seeds.job / "vitcompact-out" / "converted"
        return verb(
            "finetune", model, folder / "out", "--resume", state, "--data-dir", seeds.images, "--steps", 2, "-q"
        )
    return _resumed(seeds, path, rng)


def _resumed(seeds: Seeds, path: Path, rng: Rng) -> Read:
    """Training of a tiny model in Python, resumed from a state that was changed."""
    images = torch.zeros(4, 3, 32, 32)
    model = vitcompact.load(seeds.converted)
    options = TrainOptions(steps=2, opt=rng.choice(("adamw", "adamw", "muon")))
    finetune(model, seeds.model, images, options=options, state_dir=path.parent)
    content = path.read_bytes()
    header, data = split(content)
    if rng.random() < 0.3:
        path.unlink()
        hostile_safetensors(path, content, rng)
    else:
        told = json.loads(header["__metadata__"]["vitcompact_state"])
        header["__metadata__"]["vitcompact_state"] = hostile_document(told, rng).decode("utf-8", "replace")
        path.write_bytes(join(header, data))
    return lambda: finetune(model, seeds.model, images, options=options, state_dir=path.parent, resume="auto")


def _names(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    """Names of files rather than files."""
    name = (
        str(wrong(rng))[:9_000]
        if rng.random() < 0.5
        else rng.choice(("x" * 300, "a\0b", "d/" * 3_000, "~nobody/x", "local-dir:"))
    )
    name = name or "x"
    (folder / "0.png").write_bytes(picture(rng, "PNG"))
    calls: tuple[Read, ...] = (
        lambda: load_source(name),
        lambda: vitcompact.load(name),
        lambda: Plan.load(name),
        lambda: read_record(name),
        lambda: open_exported(f"{name}.pt2"),
        lambda: list(CalibrationImages(seeds.model, DataOptions(data_dir=name))),
    )
    return rng.choice(calls)


READERS = (
    Reader("plan", _plan, 8),
    Reader("workspace", _workspace, 5),
    Reader("curves", _curves, 5),
    Reader("state", _state, 4),
    Reader("names", _names, 3),
)
