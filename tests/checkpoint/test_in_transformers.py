"""What `save` writes is what transformers' TimmWrapper reads, once the package is imported."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import vitcompact
from vitcompact.data import resolve_input

transformers = pytest.importorskip("transformers")


def saved(folder: Path, num_classes: int, **more: object) -> nn.Module:
    """A folded pair with settings of its own, saved in `folder`."""
    torch.manual_seed(0)
    own = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.2), "label_names": ["cat", "dog", "<b>"]}
    model = timm.create_model(
        "test_vit",
        num_classes=num_classes,
        img_size=48,
        pretrained_cfg_overlay={**own, "num_classes": num_classes},
        **more,
    )
    folded = vitcompact.fold(vitcompact.convert(model, ratio=0.5, rank_ratio=0.5).eval())
    vitcompact.save(folded, folder)
    return folded


def test_a_classifier(tmp_path: Path) -> None:
    folded = saved(tmp_path / "out", 3)
    found = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(found(pixel_values=images).logits, folded(images))
    assert list(found.config.id2label.values()) == ["cat", "dog", "<b>"]


def test_images_are_prepared_alike(tmp_path: Path) -> None:
    folded = saved(tmp_path / "out", 3)
    prepared = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    expected = resolve_input(folded)
    assert tuple(prepared.data_config["mean"]) == expected.mean
    assert tuple(prepared.data_config["input_size"]) == expected.input_size
    assert prepared.data_config["crop_pct"] == expected.crop_pct
    assert timm.data.resolve_model_data_config(vitcompact.load(tmp_path / "out"))["input_size"] == (3, 48, 48)


@pytest.mark.parametrize("pool", ["token", "avg", "map"])
def test_a_feature_extractor(pool: str, tmp_path: Path) -> None:
    folded = saved(tmp_path / "out", 0, global_pool=pool)
    found = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(found(pixel_values=images).pooler_output, folded(images))
