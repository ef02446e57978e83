"""I. Models of ours in the tools of others: FX, `torch.export`, both ONNX exporters, features, real maps."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.utils import AttentionExtract
from torch import Tensor
from torchvision.models.feature_extraction import create_feature_extractor

import vitcompact
from vitcompact.errors import UsageError

from .place import VIT, Place, close, made, noise, short, situation

NAME = "vit_tiny_patch16_224"


def folded(merge: int = 0, **kwargs: Any) -> Any:
    """A folded model of two blocks with half of its heads hallucinated, perhaps merging tokens."""
    model = made(NAME, VIT, img_size=64, num_classes=5, **{"num_heads": 4, **kwargs})
    images = noise(64, count=16)
    compact = vitcompact.convert(model, images=images, ratio=0.5, rank_ratio=0.5)
    return vitcompact.fold(compact, images=images, merge_tokens=merge)


@situation("I", "torchvision's `create_feature_extractor` on converted and folded models")
def _(place: Place) -> None:
    images = noise(64)
    for model in (
        vitcompact.convert(made(NAME, VIT, img_size=64, num_heads=4), images=noise(64, count=16), ratio=0.5).eval(),
        folded(),
    ):
        graph = create_feature_extractor(model, {"blocks.1": "last", "head": "logits"})
        with torch.no_grad():
            found = graph(images)
            assert torch.allclose(found["logits"], model(images), atol=1e-5)
            assert found["last"].shape == (2, 17, 48)


@situation("I", "timm's `create_feature_extractor`, and `features_only` of what was saved")
def _(place: Place) -> None:
    model = folded()
    vitcompact.save(model, place / "out")
    again = timm.create_model(
        f"local-dir:{place / 'out'}", pretrained=True, features_only=True, out_indices=(0, 1)
    ).eval()
    images = noise(64)
    with torch.no_grad():
        wanted = model.forward_intermediates(images, indices=[0, 1], intermediates_only=True)
        for ours, theirs in zip(again(images), wanted, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)
    timm.models.create_feature_extractor(model, ["blocks.0"])


@situation("I", "`torch.export`, batch and all")
def _(place: Place) -> None:
    model, images = folded(), noise(64)
    axis = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: axis},))
    close(program.module(), model, noise(64, count=5))


def in_onnx(path: Path, images: Tensor) -> Tensor:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


def exported(model: Any, path: Path, *, dynamo: bool) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (noise(64),), str(path), dynamo=dynamo, verbose=False)
    return path


@situation("I", "ONNX by `torch.onnx.export(dynamo=True)`, merged tokens too")
def _(place: Place) -> None:
    pytest.importorskip("onnxscript")
    for merge in (0, 2):
        model, images = folded(merge), noise(64)
        path = exported(model, place / f"{merge}.onnx", dynamo=True)
        assert torch.allclose(in_onnx(path, images), model(images), atol=1e-4)


@situation("I", "ONNX by the exporter that goes through TorchScript; merged tokens work or are refused by name")
def _(place: Place) -> None:
    pytest.importorskip("onnx")
    model, images = folded(), noise(64)
    close(lambda x: in_onnx(exported(model, place / "a.onnx", dynamo=False), x), model, images, 1e-4)  # type: ignore[arg-type]
    merging = folded(2)
    try:
        path = exported(merging, place / "b.onnx", dynamo=False)
    except UsageError as error:
        short(str(error), "token merging", "dynamo=True", "merge_tokens=0")
    else:
        close(lambda x: in_onnx(path, x), merging, images, 1e-4)  # type: ignore[arg-type]


@situation("I", "`AttentionExtract` sees the maps of all heads, and which of them are hallucinated")
def _(place: Place) -> None:
    model, images = folded(), noise(64)
    with vitcompact.plain_attention(model) as heads, torch.no_grad():
        logits = model(images)
        maps = AttentionExtract(model, method="hook")(images)
        graph = AttentionExtract(model, method="fx")(images)
    assert [tuple(found.shape) for found in maps.values()] == [(2, 4, 17, 17)] * 2
    assert len(graph) == 2
    for (name, told), found in zip(heads.items(), maps.values(), strict=True):
        assert torch.allclose(found.sum(-1), torch.ones(2, 4, 17), atol=1e-5)
        assert len(told.hallucinated) == 2, name
        for child, parent in told.hallucinated.items():
            assert torch.equal(found[:, child], found[:, parent])
    close(model, lambda _: logits, images)


@situation("I", "FX on a model that merges tokens says why not")
def _(place: Place) -> None:
    with pytest.raises(UsageError) as caught:
        create_feature_extractor(folded(2), ["norm"])
    short(str(caught.value), "token merging", "merge_tokens=0")


@situation("I", "`forward_intermediates` of a model that merges tokens, at any depth")
def _(place: Place) -> None:
    model, images = folded(2), noise(64)
    with torch.no_grad():
        final, levels = model.forward_intermediates(images, norm=True)
    assert final.shape == (2, 17, 48)
    assert [level.shape for level in levels] == [(2, 48, 4, 4)] * 2
