"""G. Models as Python users have them: wrapped, in modules of their own, of other inputs, outputs and precisions."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

import vitcompact
from vitcompact.errors import UsageError

from .place import VIT, Place, close, made, noise, short, situation


def vit(**kwargs: Any) -> Any:
    return made(
        "test_vit2", **{"img_size": 32, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5, **kwargs}
    )


IMAGES = (8, 3, 32, 32)


def folds(model: Any, images: Tensor) -> Any:
    """Converted with the images, folded, and the same as before folding."""
    compact = vitcompact.convert(model, images=images, ratio=0.5, rank_ratio=0.5)
    folded = vitcompact.fold(compact, images=images)
    assert vitcompact.results(folded).plan.layers
    return folded


class Detector(nn.Module):
    """A user's module: a backbone whose layers are tapped, and a dictionary of outputs."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.scores, self.boxes = body, nn.Linear(32, 4), nn.Linear(32, 4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        levels: Any = self.body.forward_intermediates(images, indices=[0, 2], intermediates_only=True)  # type: ignore[operator]
        pooled = sum(level.mean((2, 3)) for level in levels)
        return {"scores": self.scores(pooled), "boxes": self.boxes(pooled)}


@situation("G", "a detector that taps intermediate features and returns a dictionary")
def _(place: Place) -> None:
    outer, images = Detector(vit()).eval(), torch.randn(IMAGES)
    folded = folds(outer, images)
    assert isinstance(folded, Detector)
    assert folded(images)["boxes"].shape == (8, 4)


@situation("G", "several outputs, `Sequential`, DataParallel inside")
def _(place: Place) -> None:
    outer = nn.Sequential(nn.BatchNorm2d(3), nn.DataParallel(vit()), nn.Linear(5, 2)).eval()
    folded = folds(outer, torch.randn(IMAGES))
    assert folded(torch.randn(IMAGES)).shape == (8, 2)


@situation("G", "ModelEmaV3 around `torch.compile`")
def _(place: Place) -> None:
    folded = folds(ModelEmaV3(torch.compile(vit(), backend="eager")), torch.randn(IMAGES))
    assert folded(torch.randn(IMAGES)).shape == (8, 5)


@situation("G", "`features_only`, two levels out")
def _(place: Place) -> None:
    model = timm.create_model(
        "test_vit2", features_only=True, out_indices=(0, 2), img_size=32, embed_dim=32, depth=3, num_heads=4
    ).eval()
    folded = folds(model, torch.randn(IMAGES))
    assert [level.shape[1] for level in folded(torch.randn(IMAGES))] == [32, 32]


@situation("G", "an FX model is refused with the way out")
def _(place: Place) -> None:
    graph = create_feature_extractor(made("vit_tiny_patch16_224", VIT, img_size=32), ["norm"])
    with pytest.raises(UsageError) as caught:
        vitcompact.convert(graph, images=torch.randn(IMAGES))
    short(str(caught.value), "FX graph", "make the graph of the result")


@situation("G", "12 channels, oblong, one class, with a metric that can fail")
def _(place: Place) -> None:
    model, images = vit(in_chans=12, img_size=(32, 64), num_classes=1), torch.randn(8, 12, 32, 64)
    folded = folds(model, images)
    with torch.no_grad():
        labels = (folded(images)[:, 0] > 0).long()
    assert vitcompact.evaluate(folded, images, labels).top1 == 100
    assert vitcompact.evaluate(folded, images, 1 - labels).top1 == 0


@situation("G", "one channel through the command line, PNGs in grey")
def _(place: Place) -> None:
    from .oddities import pictures

    pictures(place / "data/train")
    model = made("test_vit", img_size=32, in_chans=1, num_classes=3)
    path = place.save({"arch": "test_vit", "state_dict": model.state_dict()})
    ran = place.vitcompact("convert", path, "out", "--data-dir", "data", "--method", "pair", "--json")
    assert ran.code == 0, ran.err


@situation("G", "bfloat16 in, bfloat16 out")
def _(place: Place) -> None:
    model, images = vit().bfloat16(), torch.randn(IMAGES)
    compact = vitcompact.convert(model, images=images, ratio=0.5)
    assert {parameter.dtype for parameter in compact.parameters()} == {torch.bfloat16}
    assert compact.eval()(images.bfloat16()).dtype == torch.bfloat16


@situation("G", "hooks of a user on a layer survive")
def _(place: Place) -> None:
    model, images, seen = vit(), torch.randn(IMAGES), []
    model.blocks[0].attn.register_forward_hook(lambda _, __, out: seen.append(out.shape))
    compact = vitcompact.convert(model, images=images, ratio=0.5)
    seen.clear()
    compact.eval()(images)
    assert seen
    assert "hooks" in {item.name: item.reason for item in vitcompact.results(compact).plan.skipped}["blocks.0.attn"]


@situation("G", "peft's adapters around layers are left alone and named, merged ones converted")
def _(place: Place) -> None:
    peft = pytest.importorskip("peft")
    images = torch.randn(IMAGES)
    tuned = peft.get_peft_model(vit(), peft.LoraConfig(r=2, target_modules=["qkv"]))
    compact = vitcompact.convert(tuned, images=images, ratio=0.5, rank_ratio=0.5)
    skipped = {item.name: item.reason for item in vitcompact.results(compact).plan.skipped}
    assert "adapter" in skipped["blocks.0.attn"]
    folds(tuned.merge_and_unload(), images)


@situation("G", "images that the model does not take fail before the long work")
def _(place: Place) -> None:
    with pytest.raises(vitcompact.DataError) as caught:
        vitcompact.convert(vit(), images=torch.randn(8, 3, 40, 40), target_macs=0.8)
    short(str(caught.value), "3 x 32 x 32")
    with pytest.raises(vitcompact.VitCompactError) as raised:
        vitcompact.convert(vit(), images=torch.randn(8, 1, 32, 32))
    short(str(raised.value), "(n, 3, height, width)")


@situation("G", "a user's own subclass of a timm model")
def _(place: Place) -> None:
    class Mine(timm.models.VisionTransformer):
        def forward(self, x: Tensor) -> Any:
            return {"logits": super().forward(x)}

    model = Mine(img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=4, num_classes=5).eval()
    folded = folds(model, torch.randn(IMAGES))
    close(lambda x: folded(x)["logits"], lambda x: folded(x)["logits"], noise(32))  # type: ignore[arg-type]
