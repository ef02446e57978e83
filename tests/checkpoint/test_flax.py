"""Google's `.npz` checkpoints: the same model as timm's own loader makes of them, and nothing of hostile ones."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from tests.checkpoint.google import google_layout, write_npz
from vitcompact.checkpoint import SourceOptions, load_source
from vitcompact.errors import CheckpointError, UsageError, VitCompactError

SIZES: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3}
CLASSES = "vit_base_patch16_224"
POOLED = "vit_base_patch16_siglip_224"
GAP = "vit_base_patch16_siglip_gap_224"


def model_of(name: str, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, **{"img_size": 32, "num_classes": 5, **SIZES, **kwargs}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.mark.parametrize(
    ("name", "kwargs", "layout"),
    [
        (CLASSES, {}, {}),
        (CLASSES, {"img_size": 48, "num_classes": 21}, {"prefix": "opt/target/"}),
        (CLASSES, {"num_classes": 0}, {"prefix": "target/"}),
        (CLASSES, {"patch_size": 8}, {"prefix": "params/", "big_vision": True, "stacked": True}),
        (POOLED, {"num_classes": 0}, {"prefix": "params/img/", "big_vision": True}),
        (GAP, {"num_classes": 0}, {"prefix": "params/img/", "big_vision": True, "stacked": True}),
    ],
    ids=lambda value: str(value),
)
def test_the_model_is_the_one_that_was_written(name: str, kwargs: Any, layout: Any, tmp_path: Path) -> None:
    model = model_of(name, **kwargs)
    path = write_npz(tmp_path / "weights.npz", google_layout(model, **layout), compressed=name == GAP)
    options = SourceOptions(model=name, model_kwargs={**SIZES, **({"patch_size": 8} if "patch_size" in kwargs else {})})
    loaded = load_source(str(path), options).model
    images = torch.randn(2, 3, *loaded.patch_embed.img_size)  # type: ignore[union-attr, misc]
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=0)
    if layout.get("prefix") != "target/":  # which timm does not know
        again = model_of(name, **kwargs)
        nn.init.zeros_(again.patch_embed.proj.weight)  # type: ignore[union-attr, arg-type]
        again.load_pretrained(str(path))  # type: ignore[operator]
        with torch.no_grad():
            torch.testing.assert_close(loaded(images), again(images), rtol=0, atol=0)


def test_bfloat16_of_big_vision_is_read(tmp_path: Path) -> None:
    model = model_of(CLASSES)
    arrays = google_layout(model, prefix="params/", big_vision=True)
    half = {n: torch.from_numpy(v.copy()).bfloat16().view(torch.int16).numpy().view("V2") for n, v in arrays.items()}
    loaded = load_source(str(write_npz(tmp_path / "half.npz", half)), SourceOptions(model=CLASSES, model_kwargs=SIZES))
    assert loaded.dtype == torch.bfloat16
    expected = model.bfloat16().float().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.model.state_dict().items())


@pytest.mark.parametrize("kind", ["npz", "pth"])
def test_a_classifier_behind_a_layer_that_timm_dropped_is_refused(kind: str, tmp_path: Path) -> None:
    model = model_of(CLASSES)
    path = tmp_path / f"weights.{kind}"
    if kind == "npz":
        extra = {"pre_logits/kernel": np.eye(48, dtype="f4"), "pre_logits/bias": np.zeros(48, "f4")}
        write_npz(path, google_layout(model) | extra)
    else:
        torch.save(
            {**model.state_dict(), "pre_logits.fc.weight": torch.eye(48), "pre_logits.fc.bias": torch.zeros(48)}, path
        )
    options = SourceOptions(model=CLASSES, model_kwargs=SIZES)
    with pytest.raises(CheckpointError, match="`num_classes=0` takes the features before it"):
        load_source(str(path), options)
    load_source(str(path), SourceOptions(model=CLASSES, model_kwargs=SIZES, num_classes=0))


def npy(header: dict[str, Any], data: bytes = b"") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + data


def archive(path: Path, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in entries.items():
            out.writestr(f"{name}.npy", content)
    return path


def objects() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return stream.getvalue()


HOSTILE: dict[str, tuple[Any, str]] = {
    "no archive": (lambda path: path.write_bytes(b"not a zip" * 20), "not an archive of arrays"),
    "no ViT": (lambda path: write_npz(path, {"x": np.zeros(3)}), "no ViT of Google's"),
    "objects": (lambda path: archive(path, x=objects()), "Python objects"),
    "claims": (
        lambda path: archive(path, x=npy({"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)})),
        "not as large as it says",
    ),
    "negative": (
        lambda path: archive(path, x=npy({"descr": "<f4", "fortran_order": False, "shape": (-1,)}, b"1234")),
        "not as large as it says",
    ),
    "bomb": (
        lambda path: archive(
            path, x=npy({"descr": "<f4", "fortran_order": False, "shape": (1 << 20,)}, bytes(1 << 22))
        ),
        "bytes that unpack to",
    ),
    "empty": (
        lambda path: archive(path, x=npy({"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 0)})),
        "not as large as it says",
    ),
    "blocks": (
        lambda path: write_npz(
            path,
            {
                "embedding/kernel": np.zeros(3, "f4"),
                "Transformer/encoderblock/LayerNorm_0/scale": np.zeros(60_000, "f4"),
            },
        ),
        "60,000 tensors",
    ),
    "hybrid": (
        lambda path: write_npz(path, google_layout(model_of(CLASSES)) | {"conv_root/kernel": np.zeros((7, 7, 3, 8))}),
        "behind a ResNet",
    ),
    "torn": (
        lambda path: write_npz(
            path, {n: v for n, v in google_layout(model_of(CLASSES)).items() if "_1/query/bias" not in n}
        ),
        "not those of one ViT",
    ),
    "words": (lambda path: write_npz(path, {"embedding/kernel": np.array(["a"] * 8)}), "not an archive of arrays"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_such_checkpoint_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitcompact.checkpoint.flax._SLACK_BYTES", 1 << 20)
    make, message = HOSTILE[kind]
    make(path := tmp_path / "x.npz")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_source(str(path), SourceOptions(model=CLASSES, model_kwargs=SIZES))
    assert "\n" not in str(caught.value)


@pytest.mark.sweep
def test_an_architecture_of_its_shapes_is_named(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "tiny.npz", google_layout(timm.create_model("vit_tiny_patch16_224", depth=12)))
    with pytest.raises(UsageError, match="`model='vit_tiny_patch16_224'"):
        load_source(str(path))
    with pytest.raises(VitCompactError):
        load_source(str(path), SourceOptions(model="vit_small_patch16_224"))
