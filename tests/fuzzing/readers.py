"""Every reader of the package: how a hostile file for it is made, and what reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

import vitcompact
from vitcompact.checkpoint import load_source
from vitcompact.checkpoint.directory import load_directory
from vitcompact.checkpoint.record import read_record
from vitcompact.cli.app import main
from vitcompact.data import CalibrationImages, DataOptions, EvaluationBatches, evaluation_batches
from vitcompact.exporting import open_exported
from vitcompact.plans.schema import Plan
from vitcompact.training import TrainOptions, finetune

from .exported_files import hostile_exported
from .image_files import hostile_arrays, hostile_folder, hostile_tar, picture
from .mutate import Rng, changed, damaged, hostile_document, of_the_system, wrong
from .pickle_files import call, hostile_pickle
from .seeds import ARCHITECTURE, OPTIONS, Seeds
from .tensor_files import hostile_safetensors, join, split

Read = Callable[[], object]


@dataclass(frozen=True)
class Reader:
    """One kind of file.

    Attributes:
        make: writes a hostile file into an empty folder, and returns what reads it: a call of the library, which
            raises, or of the command line, which returns its exit code as `Exit`.
        share: of all cases, relative to the others.
        needs: names of packages, without which there are no such files.
    """

    name: str
    make: Callable[[Seeds, Path, Rng], Read]
    share: int = 10
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exit:
    """How a command ended."""

    code: int


def _verb(*words: object) -> Read:
    return lambda: Exit(main([str(word) for word in words]))


def _safetensors(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    path = folder / "x.safetensors"
    hostile_safetensors(path, seeds.weights.read_bytes(), rng)
    options = OPTIONS if rng.random() < 0.8 else None
    if rng.random() < 0.03:
        arguments = [f"{key}={value}" for key, value in (OPTIONS.model_kwargs or {}).items()]
        command = ["convert", path, folder / "out", "--model", ARCHITECTURE, "--model-kwargs", *arguments]
        return _verb(*command, "--ratio", "0.5", "--dry-run", "-q")
    return lambda: load_source(str(path), options)


def _torch(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    path = folder / f"x{rng.choice(('.pth', '.pt', '.bin', '.ckpt', '.pth.tar'))}"
    hostile_pickle(path, seeds.state, seeds.script, rng)
    (folder / "evil.py").write_text("open('EXECUTED', 'w').close()\n")
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
        settings.write_bytes(_yaml(ARGS_YAML, rng))
    options = vitcompact.checkpoint.SourceOptions(model=ARCHITECTURE) if rng.random() < 0.3 else None
    return lambda: load_source(str(path), options)


def _yaml(document: Any, rng: Rng) -> bytes:
    """A YAML file with wrong values, tags, aliases, or damage."""
    kind = rng.randrange(8)
    bomb = "\n".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9) if i else 'lol'}]" for i in range(9))
    tags = (
        "!!python/object/apply:os.system",
        "!!python/name:os.system",
        "!!binary",
        "!!timestamp",
        "!!set",
        "!!int",
        "!x",
    )
    if kind == 0:
        return f"{bomb}\nratio: *x8\n".encode()
    try:
        text = yaml.safe_dump(document if kind == 1 else _finite(changed(document, rng)), allow_unicode=True)
    except RecursionError:
        return b"a: " + b"[" * 500
    if kind == 1:
        lines = text.splitlines()
        at = rng.randrange(len(lines))
        lines[at] = f"{lines[at].partition(':')[0]}: {rng.choice(tags)} {rng.choice(('[id]', 'x', '{}', '[1, 2]'))}"
        return "\n".join(lines).encode()
    if kind == 2:
        return damaged(text.encode("utf-8", "replace"), rng)
    if kind == 3:
        return text.encode("utf-8", "replace") + rng.choice(
            (b"<<: *x", b"? [a]\n: b\n", b"a: &a [*a]\n", b"---\nx: 1\n", b"\t")
        )
    return text.encode("utf-8", "replace")


def _finite(document: Any) -> Any:
    """Without what YAML cannot write."""
    return json.loads(json.dumps(document, ensure_ascii=True).replace("\\ud800", "?"))


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
        return _verb("eval", out, "--data-dir", seeds.images, "--num-samples", 1, "-q")
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
        return _verb("fold", out, folder / "out", "-q")
    return lambda: load_source(str(out))


def _record(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    out = _config(seeds, folder, rng, seeds.converted, "vitcompact.json")
    if rng.random() < 0.1:
        verb = rng.choice(
            (("fold", out, folder / "out"), ("eval", out, "--data-dir", seeds.images, "--num-samples", 1))
        )
        return _verb(*verb, "-q")
    return lambda: read_record(out)


def _card(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    out = folder / "model"
    shutil.copytree(seeds.timm_directory, out)
    path = out / "README.md"
    if not of_the_system(path, rng):
        head = _yaml({"license": "mit", "tags": ["x"], "library_name": "timm", "datasets": {"a": [1]}}, rng)
        path.write_bytes(b"---\n" + head + rng.choice((b"\n---\n", b"", b"---" * 10_000)) + b"# Title\n")
    return lambda: load_directory(out)


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
        return _verb("convert", seeds.timm_directory, folder / "out", "--plan", path, "--dry-run", "-q")
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
    return _verb(*words, "--workdir", out, "-q")


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
        return _verb(
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


CONFIG = {
    **{
        "ratio": 0.5,
        "rank_ratio": 0.5,
        "data_dir": "images",
        "num_samples": 8,
        "batch_size": 4,
        "mean": [0.5, 0.5, 0.5],
    },
    **{
        "seed": 1,
        "img_size": 32,
        "exclude": ["blocks.0"],
        "model_kwargs": {"depth": 1},
        "dry_run": True,
        "device": "cpu",
    },
}


def _options(seeds: Seeds, folder: Path, rng: Rng) -> Read:
    path = folder / "job.yaml"
    if not of_the_system(path, rng):
        documents = rng.random() < 0.2
        path.write_bytes(hostile_document({"options": CONFIG}, rng) if documents else _yaml(CONFIG, rng))
    (folder / "exists").mkdir()
    return _verb("convert", "nowhere.pth", folder / "exists", "--config", path, "-q")


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
        return _verb("eval", seeds.timm_directory, "--data-dir", data, "-q")
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
            return _verb("eval", path, "--data-dir", seeds.images, "--num-samples", 1, "-q")
        return lambda: _run(open_exported(path))

    return make


def _run(model: Any) -> None:
    vitcompact.data.eval_transform(vitcompact.data.resolve_input(model))
    size = model.description.input.input_size
    if max(size) <= 64:
        model(torch.zeros(1, *size))


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


READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        Reader("safetensors", _safetensors, 14),
        Reader("torch", _torch, 20),
        Reader("index", _index, 6),
        Reader("beside", _beside, 6),
        Reader("timm config", _timm_config, 9),
        Reader("own config", _own_config, 9),
        Reader("record", _record, 8),
        Reader("card", _card, 3),
        Reader("plan", _plan, 8),
        Reader("workspace", _workspace, 5),
        Reader("state", _state, 4),
        Reader("options", _options, 6),
        Reader("class map", _class_map, 3),
        Reader("images", _images, 12),
        Reader("tar", _tar, 10),
        Reader("arrays", _arrays, 5),
        Reader("onnx", _exported(".onnx"), 4, ("onnx", "onnxruntime", "onnxscript")),
        Reader("xml", _exported(".xml"), 3, ("openvino",)),
        Reader("pt2", _exported(".pt2"), 3),
        Reader("transformers", _transformers, 6, ("transformers",)),
        Reader("open_clip", _open_clip, 3),
        Reader("names", _names, 3),
    )
}
