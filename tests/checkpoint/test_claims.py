"""Checkpoints that claim what they do not hold, or hold what no model has: refused before there is memory for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import vitcompact
from vitcompact.checkpoint import SourceOptions, load_source
from vitcompact.checkpoint.read import read_weights
from vitcompact.errors import CheckpointError, UsageError

TENSORS: dict[str, tuple[Callable[[], Tensor], str]] = {
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "is nested"),
    "meta": (lambda: torch.empty(4, device="meta"), "a shape and no data"),
    "dimensions": (lambda: torch.ones((1,) * 64), "64 dimensions"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_no_model_has(kind: str, tmp_path: Path) -> None:
    make, reason = TENSORS[kind]
    torch.save({"blocks.0.weight": make()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=f"'blocks.0.weight' {reason}|'blocks.0.weight' has {reason}"):
        read_weights(tmp_path / "x.pth")


def safetensors(path: Path, header: dict[str, Any], data: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_many_and_many_dimensional_tensors_of_safetensors(tmp_path: Path) -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    path = safetensors(tmp_path / "many.safetensors", {f"t{i}": empty for i in range(50_001)})
    with pytest.raises(CheckpointError, match="50,001 tensors"):
        read_weights(path)
    one = {"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]}
    with pytest.raises(CheckpointError, match="65 dimensions"):
        read_weights(safetensors(tmp_path / "deep.safetensors", {"t": one}, b"\0" * 4))


def test_a_pickle_that_asks_for_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (6 * 10**9).to_bytes(5, "little") + b"\x85R.")
    with pytest.raises(CheckpointError, match="bytearray"):
        read_weights(path)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = timm.create_model("test_vit", num_classes=2, img_size=32, depth=1)
    return vitcompact.save(vitcompact.convert(model, ratio=0.5), tmp_path_factory.mktemp("ours") / "out")


@pytest.fixture
def copied(ours: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ours, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("argument", "value", "reason"),
    [
        ("depth", 10**6, "depth is 1,000,000"),
        ("embed_dim", 2**14, "asks for a model"),
        ("num_heads", 10**9, "num_heads is 1,000,000,000"),
        ("img_size", 10**5, "img_size is 100,000"),
        ("embed_dim", 2**40, "embed_dim is"),
        ("mlp_ratio", float("inf"), "mlp_ratio is inf"),
        ("num_classes", 10**9, "num_classes is"),
        ("anything", {"deep": [[10**30]]}, "anything.deep is"),
        ("anything", list(range(20_000)), "more than 10,000 arguments"),
        ("depth", -3, "cannot be built"),
        ("patch_size", 0, "cannot be built"),
        ("embed_dim", "wide", "cannot be built"),
        ("base", "vit_7b_patch16_dinov3", "plan of a vitcompact model"),
    ],
)
def test_arguments_that_no_model_has(argument: str, value: object, reason: str, copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["model_args"][argument] = value
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=reason):
        vitcompact.load(copied)


def test_a_huge_model_with_a_small_file(ours: Path, copied: Path) -> None:
    config = {"architecture": "vit_7b_patch16_dinov3", "num_classes": 1000, "pretrained_cfg": {}}
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="asks for a model of 6,7"):
        vitcompact.load(copied)
    (copied / "config.json").unlink()
    with pytest.raises(CheckpointError, match="asks for a model of 6,7"):
        load_source(str(copied / "model.safetensors"), SourceOptions(model="vit_7b_patch16_dinov3"))


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "local-dir:" + "x" * 5_000])
def test_names_that_no_file_can_have(name: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: load_source(name),
        lambda: vitcompact.load(name),
        lambda: vitcompact.save(timm.create_model("test_vit"), name),
        lambda: vitcompact.Plan.load(name),
    ]
    for call in calls:
        with pytest.raises(UsageError) as refused:
            call()
        assert len(str(refused.value)) < 300
        assert "\0" not in str(refused.value)


def test_circles_and_repetitions_end(tmp_path: Path) -> None:
    """A pickle of some kilobytes in which the same dictionaries lie under many keys, or in themselves."""
    many: Any = {"w": torch.ones(1)}
    for _ in range(6):
        many = {f"k{i}": many for i in range(300)}
    torch.save(many, tmp_path / "many.pth")
    with pytest.raises(CheckpointError, match="repeat themselves"):
        read_weights(tmp_path / "many.pth")
    circle: dict[str, Any] = {"state_dict": {"w": torch.ones(1)}}
    circle["model"] = circle
    torch.save(circle, tmp_path / "circle.pth")
    assert len(read_weights(tmp_path / "circle.pth").boxes) < 50
    module = torch.nn.Sequential(torch.nn.Linear(1, 1))
    module.add_module("again", module)
    torch.save({"state_dict": module}, tmp_path / "module.pth")
    with pytest.raises(CheckpointError, match="nested too deep"):
        read_weights(tmp_path / "module.pth")


@pytest.mark.parametrize("args", [{"depth": 1_000}, {"depths": [2, 2, 900, 2]}], ids=["depth", "depths"])
def test_more_blocks_than_tensors(args: dict[str, Any], tmp_path: Path) -> None:
    """Building a thousand blocks takes seconds, and it is done several times before shapes are compared."""
    torch.save(timm.create_model("test_vit", num_classes=2).state_dict(), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=f"is said to have {1_000 if 'depth' in args else 906} blocks"):
        load_source(str(tmp_path / "x.pth"), SourceOptions(model="test_vit", model_kwargs=args))


def test_thousands_of_state_dicts(tmp_path: Path) -> None:
    tensor = torch.ones(1)
    torch.save({f"k{i}": {"weight": tensor} for i in range(2_000)}, tmp_path / "x.pth")
    with pytest.raises(UsageError, match=r"several models; say which: .* and 1992 more"):
        load_source(str(tmp_path / "x.pth"), SourceOptions(model="test_vit"))
