"""The bundled model and images are what their README and config say they are."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import ImageDataset, create_dataset, create_transform, resolve_data_config
from timm.models import VisionTransformer

import vitcompact

ASSETS = Path(vitcompact.__file__).parent / "demo" / "assets"
MODEL_DIR = ASSETS / "vit_digits"


@pytest.fixture(scope="module")
def model() -> VisionTransformer:
    return timm.create_model(f"local-dir:{MODEL_DIR}", pretrained=True).eval()


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    training: dict[str, Any] = json.loads((MODEL_DIR / "config.json").read_text())["training"]
    return training


def pixel_hashes(name: str) -> list[str]:
    with tarfile.open(ASSETS / name) as tar:
        files = [tar.extractfile(member) for member in tar if member.isfile()]
        return [hashlib.sha256(Image.open(file).tobytes()).hexdigest() for file in files if file is not None]


def open_test_images(model: VisionTransformer) -> ImageDataset:
    transform = create_transform(**resolve_data_config({}, model=model), is_training=False)
    return create_dataset("", root=str(ASSETS / "test.tar"), transform=transform)


def test_timm_loads_the_stored_weights(model: VisionTransformer) -> None:
    stored = load_file(MODEL_DIR / "model.safetensors")
    loaded = model.state_dict()
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in stored.items())


def test_has_something_to_compact(model: VisionTransformer) -> None:
    attention, ffn = model.blocks[0].attn, model.blocks[0].mlp
    assert len(model.blocks) >= 6
    assert attention.num_heads >= 4
    assert attention.num_heads % 2 == 0
    assert ffn.fc2.in_features == 4 * ffn.fc2.out_features
    assert ffn.fc2.out_features % 16 == 0  # half of it is a rank in a multiple of 8


@torch.inference_mode()
def test_top1_is_the_recorded_one(model: VisionTransformer, recorded: dict[str, Any]) -> None:
    dataset = open_test_images(model)
    images, labels = next(iter(torch.utils.data.DataLoader(dataset, batch_size=len(dataset))))
    top1 = 100 * (model(images).argmax(dim=1) == labels).float().mean().item()
    assert top1 == pytest.approx(recorded["top1"], abs=0.2)
    assert recorded["top1"] >= 98


def test_readme_states_figure_licence_and_checksum(recorded: dict[str, Any]) -> None:
    readme = (ASSETS / "README.md").read_text()
    assert f"**{recorded['top1']:.2f} %**" in readme
    assert "Alpaydin" in readme
    assert "CC BY 4.0" in readme
    assert hashlib.sha256((MODEL_DIR / "model.safetensors").read_bytes()).hexdigest() in readme


def test_no_image_is_both_trained_on_and_held_out() -> None:
    train, held_out = pixel_hashes("train.tar"), pixel_hashes("test.tar")
    assert len(set(train)) == len(train) >= 500
    assert len(set(held_out)) == len(held_out) >= 500
    assert not set(train) & set(held_out)


def test_tars_hold_ten_class_folders_and_nothing_of_this_machine() -> None:
    for name in ("train.tar", "test.tar"):
        with tarfile.open(ASSETS / name) as tar:
            members = tar.getmembers()
        assert {member.name.split("/")[0] for member in members} == {str(digit) for digit in range(10)}
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}


def test_package_stays_small() -> None:
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 1_800_000
