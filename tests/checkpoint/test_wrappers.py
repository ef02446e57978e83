"""What else is in checkpoints: other objects, other kinds of tensors, code that is not run, and several files."""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from vitcompact.checkpoint import SourceOptions, load_source
from vitcompact.checkpoint.provenance import sha256_of
from vitcompact.checkpoint.read import read_weights
from vitcompact.errors import CheckpointError

from .helpers import perturb

ROUNDED = SourceOptions(model="test_vit")


class Settings(dict[str, Any]):
    """A training script's own kind of dictionary."""


class Ordered(collections.OrderedDict[str, Tensor]):
    """Its own kind of state dict."""


class Recorder:
    """An object of its own."""

    def __init__(self) -> None:
        self.losses = [0.5, 0.25]


OBJECTS: dict[str, Callable[[], object]] = {
    "a NumPy number": lambda: np.float64(76.3),
    "a NumPy integer": lambda: np.int64(3),
    "a NumPy truth value": lambda: np.bool_(True),
    "a NumPy array": lambda: np.arange(3),
    "a defaultdict": lambda: collections.defaultdict(list, a=[1]),
    "a path": lambda: Path("/data/images"),
    "a dictionary of a class": lambda: Settings(lr=0.1),
    "an object": Recorder,
    "a date": lambda: datetime.datetime(2026, 1, 2),
    "a namespace": lambda: argparse.Namespace(lr=0.1, out=Path("x"), best=np.float32(1)),
    "a type": lambda: (int, frozenset({1})),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_objects_beside_the_weights_do_not_matter(kind: str, vit: nn.Module, tmp_path: Path) -> None:
    torch.save({"state_dict": vit.state_dict(), "extra": OBJECTS[kind]()}, tmp_path / "w.pth")
    assert_same(tmp_path / "w.pth", vit)


STATE_DICTS: dict[str, Callable[[Mapping[str, Tensor]], object]] = {
    "a defaultdict": lambda weights: collections.defaultdict(Tensor, weights),
    "a subclass of OrderedDict": lambda weights: Ordered(weights),
    "a subclass of dict": lambda weights: Settings(weights),
    "sparse": lambda weights: {**weights, "head.weight": weights["head.weight"].to_sparse()},
    "transposed": lambda weights: {**weights, "head.weight": weights["head.weight"].t().contiguous().t()},
    "a module pickled whole": lambda weights: {"model": built(weights), "epoch": 3},
    "parameters": lambda weights: {name: nn.Parameter(tensor) for name, tensor in weights.items()},
}


def built(weights: Mapping[str, Tensor]) -> nn.Module:
    model = timm.create_model("test_vit", num_classes=10, img_size=64)
    model.load_state_dict(weights)
    return nn.DataParallel(model)


@pytest.mark.parametrize("kind", STATE_DICTS)
def test_any_kind_of_state_dict_is_read(kind: str, vit: nn.Module, tmp_path: Path) -> None:
    torch.save(STATE_DICTS[kind](vit.state_dict()), tmp_path / "w.ckpt")
    assert_same(tmp_path / "w.ckpt", vit)


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16, torch.float64]
)
def test_any_floating_point_type_is_read(dtype: torch.dtype, vit: nn.Module, tmp_path: Path) -> None:
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.copy_(parameter.to(dtype).float())
    weights = {name: tensor.to(dtype) for name, tensor in vit.state_dict().items()}
    torch.save(weights, tmp_path / "w.pth")
    assert_same(tmp_path / "w.pth", vit)


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        lambda weight: torch.quantize_per_channel(
            weight, torch.ones(len(weight)), torch.zeros(len(weight)), 0, torch.qint8
        ),
        lambda weight: weight.mul(100).to(torch.int8),
        lambda weight: weight.mul(100).to(torch.int64),
        lambda weight: weight > 0,
    ],
    ids=["quantised", "by channel", "int8", "int64", "bool"],
)
def test_numbers_that_are_no_weights_are_refused(
    change: Callable[[Tensor], Tensor], vit: nn.Module, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to give up quantised tensors
        weights = vit.state_dict()
        torch.save({**weights, "head.weight": change(weights["head.weight"])}, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=r"tensor head\.weight is \w+, where the model has floating-point"):
            load_source(str(tmp_path / "w.pth"), ROUNDED)


class _Part(nn.Module):
    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        below: dict[str, dict[str, Tensor]] = collections.defaultdict(dict)
        for name, tensor in weights.items():
            first, dot, rest = name.partition(".")
            if dot:
                below[first][rest] = tensor
            else:
                self.register_parameter(name, nn.Parameter(tensor))
        for first, inner in below.items():
            self.add_module(first, _Part(inner))

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_tensors_of_a_torchscript_archive_are_read_and_its_code_is_not(vit: nn.Module, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and its archives are there
        torch.jit.save(torch.jit.script(_Part(vit.state_dict())), tmp_path / "w.pt")
    assert_same(tmp_path / "w.pt", vit)


def test_an_index_means_all_of_its_files(vit: nn.Module, tmp_path: Path) -> None:
    parts, index = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)], tmp_path / "model.safetensors.index.json"
    weights = vit.state_dict()
    files = {name: parts[i % 2] for i, name in enumerate(weights)}
    for part in parts:
        save_file({name: weights[name] for name in weights if files[name] == part}, tmp_path / part)
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    for path in (index, tmp_path / parts[1]):
        assert_same(path, vit)
    loaded = load_source(str(index), ROUNDED)
    assert loaded.provenance.sha256 == sha256_of(index, *(tmp_path / part for part in parts))
    (tmp_path / parts[0]).unlink()
    with pytest.raises(CheckpointError, match=f"missing: {parts[0]}"):
        load_source(str(index), ROUNDED)
    hostile: tuple[object, ...] = ({"a": "../w.pth"}, {}, {"a": 1}, [])
    for weight_map in hostile:
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=r"is refused|is damaged"):
            load_source(str(index), ROUNDED)


RECORDED = {
    "model": "test_vit",
    "gp": "avg",
    "model_kwargs": {"fc_norm": False},
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
    "crop_pct": 0.75,
    "interpolation": "bilinear",
    "class_map": "elsewhere/classes.txt",
    "img_size": None,
}


@pytest.mark.parametrize("where", ["args", "a dictionary", "args.yaml", "hyper_parameters", "config.json"])
def test_what_is_recorded_counts(where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Average pooling without a normalisation of its own has no weights: only the record tells."""
    model = perturb(timm.create_model("test_vit", num_classes=3, img_size=64, global_pool="avg", fc_norm=False))
    content: dict[str, Any] = {"state_dict": model.state_dict()}
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n")
    if where == "args":
        content["args"] = argparse.Namespace(**RECORDED)
    elif where == "a dictionary":
        content["args"] = RECORDED
    elif where == "hyper_parameters":
        content["hyper_parameters"] = {**RECORDED, "model_name": RECORDED["model"], "lr": 0.1}
    elif where == "args.yaml":
        (tmp_path / "args.yaml").write_text(yaml.safe_dump(RECORDED))
    else:
        args = {"global_pool": "avg", "fc_norm": False}
        document = {"architecture": "test_vit", "model_args": args, "pretrained_cfg": RECORDED}
        (tmp_path / "config.json").write_text(json.dumps(document))
    torch.save(content, tmp_path / "w.pth")
    with caplog.at_level(logging.INFO, logger="vitcompact"):
        loaded = load_source(str(tmp_path / "w.pth"))
    cfg: Any = loaded.model.pretrained_cfg
    assert_same(tmp_path / "w.pth", model, SourceOptions())
    assert (cfg["mean"], cfg["std"]) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (cfg["crop_pct"], cfg["interpolation"], cfg["label_names"]) == (0.75, "bilinear", ("ant", "bee", "cat"))
    assert "global_pool=avg (recorded in" in caplog.text
    assert loaded.provenance.read_as is not None
    assert loaded.provenance.read_as["global_pool"] == "avg"
    other = load_source(str(tmp_path / "w.pth"), SourceOptions(global_pool="token")).model
    assert other.global_pool == "token"


def test_what_another_architecture_records_does_not_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = perturb(timm.create_model("test_vit", num_classes=3, img_size=64))
    content = {"state_dict": model.state_dict(), "args": {**RECORDED, "model": "test_vit2"}}
    torch.save(content, tmp_path / "w.pth")
    assert_same(tmp_path / "w.pth", model)
    assert "says that it is test_vit2" in caplog.text


def test_a_class_map_elsewhere_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("a\nb\nc\n")
    (tmp_path / "in").mkdir()
    args = {**RECORDED, "class_map": str(tmp_path / "secret.txt")}
    torch.save({"state_dict": {"a": torch.zeros(1)}, "args": args}, tmp_path / "in" / "w.pth")
    assert "label_names" not in read_weights(tmp_path / "in" / "w.pth").facts.cfg


def assert_same(path: Path, model: nn.Module, options: SourceOptions = ROUNDED) -> None:
    loaded = load_source(str(path), options).model
    weights, expected = loaded.state_dict(), model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
