"""Readers of images, and of exported files, which run on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import vitcompact
from vitcompact.data import CalibrationImages, DataOptions, EvaluationBatches, evaluation_batches
from vitcompact.exporting import open_exported

from .exported_files import hostile_exported
from .image_files import hostile_arrays, hostile_folder, hostile_tar
from .mutate import Rng, damaged, of_the_system
from .pickle_files import call
from .reader import Read, Reader, verb
from .seeds import Seeds


def _class_map(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    path = folder / f"map.{rng.choice(('txt', 'txt', 'pkl', 'csv'))}"
    if not of_the_system(path, rng):
        pickled = rng.choice(
            (call(rng) + b".", b"\x80\x04}V\x63at\nK\x01s.", b"]" + b"2\x61" * 60_000 + b".", b"B\xff\xff\xff\xff")
        )
        text = rng.choice((b"cat\ndog\n", b"\x1b[31m\n", b"\xff\xfe", b"", b"cat\ncat\n", b"x" * 10**7, b"\n" * 10**6))
        path.write_bytes(pickled if path.suffix == ".pkl" else damaged(text, rng) if rng.random() < 0.3 else text)
    options = DataOptions(data_dir=str(seeds.images), class_map=str(path), num_samples=2)
    return lambda: _scored(seeds.model, options)


def _scored(model: Any, options: DataOptions) -> None:
    batches = evaluation_batches(model, options)
    assert isinstance(batches, EvaluationBatches)
    for _ in batches:
        pass


def _images(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    hostile_folder(folder / "data", rng)
    return _data(seeds, folder / "data", rng)


def _data(seeds: Seeds, data: Path, rng: Rng) -> Read:
    options = DataOptions(data_dir=str(data), num_samples=32, batch_size=8)
    if rng.random() < 0.03:
        return verb("eval", seeds.timm_directory, "--data-dir", data, "-q")
    if rng.random() < 0.3:
        return lambda: _scored(seeds.model, options)
    return lambda: list(CalibrationImages(seeds.model, options))


def _tar(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    hostile_tar(folder / "data.tar", rng)
    return _data(seeds, folder / "data.tar", rng)


def _arrays(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    hostile_arrays(folder / "data", rng)
    options = DataOptions(data_dir=str(folder / "data"), num_samples=8)
    return lambda: list(CalibrationImages(seeds.five_channels, options))


def _exported(suffix: str) -> Callable[[Seeds, Path, Rng], Read]:
    def make(seeds: Seeds, folder: Path, rng: Rng) -> Read:
        path = folder / f"x{suffix}"
        hostile_exported(path, seeds.exported(suffix), rng)
        if rng.random() < 0.05:
            return verb("eval", path, "--data-dir", seeds.images, "--num-samples", 1, "-q")
        return lambda: _run(open_exported(path))

    return make


def _run(model: Any) -> None:
    vitcompact.data.eval_transform(vitcompact.data.resolve_input(model))
    size = model.description.input.input_size
    if max(size) <= 64:
        model(torch.zeros(1, *size))


READERS = (
    Reader("class map", _class_map, 3),
    Reader("images", _images, 12),
    Reader("tar", _tar, 10),
    Reader("arrays", _arrays, 5),
    Reader("onnx", _exported(".onnx"), 4, ("onnx", "onnxruntime", "onnxscript")),
    Reader("xml", _exported(".xml"), 3, ("openvino",)),
    Reader("pt2", _exported(".pt2"), 3),
)
