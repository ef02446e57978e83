"""The real checkpoints, there and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from timm.models import VisionTransformer

from vitcompact.checkpoint import SourceOptions, load, load_source, read_record, save
from vitcompact.errors import UsageError

MODELS = {"vit_small_cifar10": 84, "pvt_v2_b0_cifar10": 64, "vit_small_features": 224}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "img_size"), MODELS.items())
def test_real_checkpoint_there_and_back(shared_dir: Path, tmp_path: Path, name: str, img_size: int) -> None:
    source = shared_dir / "models" / name
    images = torch.randn(2, 3, img_size, img_size)
    loaded = load_source(str(source))
    reference = timm.create_model(f"local-dir:{source}", pretrained=True).eval()
    out = save(loaded.model, tmp_path / "out", provenance=loaded.provenance, dtype=torch.float16)
    with torch.no_grad():
        expected = reference(images)
        assert torch.equal(loaded.model(images), expected)
        assert torch.equal(load(out)(images), expected)  # the source is float16 itself
    assert read_record(out).provenance == loaded.provenance
    again: VisionTransformer = load(out)
    assert again.pretrained_cfg.get("label_names") == reference.pretrained_cfg.get("label_names")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "img_size"), MODELS.items())
def test_real_weights_file_alone(shared_dir: Path, tmp_path: Path, name: str, img_size: int) -> None:
    source = shared_dir / "models" / name
    bare = tmp_path / "weights.safetensors"
    bare.symlink_to(source / "model.safetensors")
    reference = load(source)
    architecture = "pvt_v2_b0" if name.startswith("pvt") else "vit_small_patch14_dinov2"
    with pytest.raises(UsageError, match=f"`model='{architecture}'`"):
        load_source(str(bare))
    model = load_source(str(bare), SourceOptions(model=architecture)).model
    images = torch.randn(2, 3, img_size, img_size)
    with torch.no_grad():
        assert torch.equal(model(images), reference(images))
