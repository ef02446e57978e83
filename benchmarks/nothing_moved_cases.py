"""What `nothing_moved.py` converts: models, their images, and the options of `convert`."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import vitcompact

PAIR = {"ratio": 0.5, "rank_ratio": 0.5}
CASES: dict[str, dict[str, Any]] = {
    "pair": PAIR,
    "macs": {"target_macs": 0.8},
    "params": {"target_params": 0.7},
    "merge-auto": {"target_macs": 0.8, "merge_tokens": "auto"},
    "merge-4": {**PAIR, "merge_tokens": 4},
    "weights": {**PAIR, "images": None},
}
DEMO_CASES: dict[str, dict[str, Any]] = {
    "reconstruct": {"target_macs": 0.8, "reconstruct": 10},
    "paths": {**PAIR, "terms": ("identity", "mean", "conv"), "filter_rank": 2, "branches": 2},
    "naive": {**PAIR, "init": "svd", "hallucinate": "copy"},
}
SLOW = {
    "nextvit": ("pair", "macs"),
    "vit_small_cifar10": ("pair", "macs", "params", "merge-4", "weights"),
    "vit_small_features": ("pair", "macs", "params", "merge-4", "weights"),
}
"""Wide models, which take a minute or two for a budget, do with fewer cases."""
ASSETS = Path(vitcompact.__file__).parent / "demo" / "assets"
REAL = {
    "demo": (ASSETS / "vit_digits", ASSETS / "train.tar", 48),
    "pvt_v2_b0_cifar10": (Path("models/pvt_v2_b0_cifar10"), Path("data/cifar10/val.tar"), 16),
    "vit_small_cifar10": (Path("models/vit_small_cifar10"), Path("data/cifar10/val.tar"), 16),
    "vit_small_features": (Path("models/vit_small_features"), Path("data/photos/calibration.tar"), 6),
}
"""Checkpoints below the shared folder, and on how many of which images they are calibrated."""
PLAIN = {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 4}
WINDOWS = {"img_size": 64, "window_size": 4, "embed_dim": 32, "depths": (2, 1, 2), "num_heads": (2, 4, 4)}
STAGES = {"embed_dims": (16, 32, 48, 64), "num_heads": (1, 2, 3, 4)}
RANDOM: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("test_vit", {"img_size": 64}),
    "rope": ("vit_small_patch16_rope_mixed_224", PLAIN),
    "eva": ("eva02_base_patch14_224", {**PLAIN, "img_size": 56, "depth": 6}),
    "dinov3": ("vit_small_patch16_dinov3", {**PLAIN, "depth": 5}),
    "beit": ("beit_base_patch16_224", PLAIN),
    "swin": ("swin_tiny_patch4_window7_224", WINDOWS),
    "swin_v2": ("swinv2_tiny_window8_256", WINDOWS),
    "pvt": ("pvt_v2_b0", {**STAGES, "depths": (1, 1, 2, 1), "mlp_ratios": (4, 4, 2, 2)}),
    "twins": ("twins_svt_small", {**STAGES, "depths": (2, 2, 2, 1), "img_size": 64}),
    "nextvit": ("nextvit_small", {"depths": (1, 1, 5, 1)}),
    "visformer": ("visformer_tiny", {"embed_dim": 96, "depth": (0, 3, 3), "img_size": 64}),
}
"""A timm name and its sizes for each family."""


def cases_of(name: str) -> dict[str, dict[str, Any]]:
    """Options of `convert` by the names of the cases that a model goes through."""
    return {case: CASES[case] for case in SLOW.get(name, CASES)} | (DEMO_CASES if name == "demo" else {})


@torch.no_grad()
def random_model(name: str, sizes: dict[str, Any]) -> tuple[nn.Module, Tensor]:
    """A model in which no weight is trivial, and 16 images, coarse structure with noise `(n, 3, height, width)`."""
    torch.manual_seed(0)
    side = sizes.get("img_size", 64)
    overlay = {"input_size": (3, side, side)}
    model = timm.create_model(name, num_classes=7, drop_path_rate=0.0, pretrained_cfg_overlay=overlay, **sizes)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * (0.1 * parameter.abs().mean() + 0.02))
    images = F.interpolate(torch.randn(32, 3, 5, 5), (side, side), mode="bilinear")
    images += 0.3 * torch.randn_like(images)
    update_bn([images[16:]], model)  # outputs of deep nets would explode
    return model.eval(), images[:16]


def real_model(checkpoint: Path, tar_file: Path, num_images: int) -> tuple[nn.Module, Tensor]:
    """A checkpoint, and images spread evenly over a tar, as the model's own configuration wants them."""
    model: nn.Module = vitcompact.load_source(str(checkpoint)).model
    transform = create_transform(**resolve_data_config({}, model=model))
    with tarfile.open(tar_file) as tar:
        names = sorted(member.name for member in tar if member.isfile() and member.name.endswith((".jpg", ".png")))
        chosen = names[:: len(names) // num_images][:num_images]
        images = [transform(Image.open(tar.extractfile(name)).convert("RGB")) for name in chosen]  # type: ignore[arg-type]
    return model, torch.stack(images)


def build(name: str, data: Path, num_images: int | None = None) -> tuple[nn.Module, Tensor]:
    """A model and its images; of a real checkpoint as many as asked for.

    Raises:
        UsageError: no such checkpoint below `data`.
    """
    if name in RANDOM:
        return random_model(*RANDOM[name])
    checkpoint, tar_file, few = REAL[name]
    return real_model(data / checkpoint, data / tar_file, num_images or few)
