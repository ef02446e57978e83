"""H. What is saved computes what the model computes, or is not saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import vitcompact
from vitcompact.errors import VitCompactError

from .modules import vit
from .place import Place, RoughError, close, noise, shaken, short, situation


def comes_back(place: Place, model: nn.Module, size: int | tuple[int, int] = 32, channels: int = 3) -> None:
    """Saved plainly and after conversion, and loaded again, by us and by timm."""
    images = noise(size, channels, 8)
    close(vitcompact.load(vitcompact.save(model, place / "plain")), model, images)
    folded = vitcompact.fold(vitcompact.convert(model, images=images, ratio=0.5, rank_ratio=0.5), images=images)
    vitcompact.save(folded, place / "folded")
    again = timm.create_model(f"local-dir:{place / 'folded'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(again(images), folded(images))


def is_not_saved(place: Place, model: nn.Module, *told: str) -> None:
    with pytest.raises(VitCompactError) as caught:
        vitcompact.save(model, place / "out")
    short(str(caught.value), *told)
    assert not (place / "out").exists()
    assert not [path for path in place.folder.iterdir() if path.name.startswith((".out", "out"))]


@situation("H", "another number of classes by `reset_classifier`, and average pooling with it")
def _(place: Place) -> None:
    model = vit()
    model.reset_classifier(9, "avg")
    comes_back(place, shaken(model))


@situation("H", "`head` replaced by a layer of two outputs")
def _(place: Place) -> None:
    model = vit()
    model.head = nn.Linear(32, 2)
    is_not_saved(place, model, "reset_classifier(2)")


@situation("H", "a head of several layers")
def _(place: Place) -> None:
    model = vit()
    model.head = nn.Sequential(nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 2))
    is_not_saved(place, model, "reset_classifier")


@situation("H", "blocks taken off the end")
def _(place: Place) -> None:
    model = vit()
    model.blocks = model.blocks[:2]
    is_not_saved(place, model, "depth")


@situation("H", "`prune_intermediate_layers` of timm")
def _(place: Place) -> None:
    model = vit()
    model.prune_intermediate_layers([0, 1], prune_norm=False, prune_head=False)
    is_not_saved(place, model, "depth")


@situation("H", "another activation and another eps")
def _(place: Place) -> None:
    model = vit()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-3
    for block in model.blocks:
        block.mlp.act = nn.ReLU()
    comes_back(place, model)


@situation("H", "a stem of other channels, swapped by hand")
def _(place: Place) -> None:
    model = vit()
    model.patch_embed.proj = nn.Conv2d(4, 32, 16, 16)
    is_not_saved(place, model, "in_chans")


@situation("H", "another size by `set_input_size`")
def _(place: Place) -> None:
    model = vit()
    model.set_input_size(img_size=(64, 32))
    comes_back(place, model, (64, 32))


def swaps(name: str, change: Callable[[Any], object], *told: str) -> None:
    @situation("H", name)
    def _(place: Place) -> None:
        model = vit()
        change(model)
        try:
            comes_back(place, model)
        except VitCompactError as error:
            short(str(error), *told)
            is_not_saved(place, model, *told)
        else:
            if told:
                raise RoughError("saved, where a refusal was expected")


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 1.5


swaps(
    "a forward that was replaced",
    lambda m: setattr(m, "forward", lambda x: m.forward_head(m.forward_features(x)) * 2),
    "forward",
)
swaps("a hook that changes outputs", lambda m: m.head.register_forward_hook(lambda _, __, out: out * 2), "hook")
swaps("a module put into the trunk", lambda m: setattr(m, "norm_pre", Scaled()), "Scaled")
swaps("dropout switched on, which changes nothing in evaluation", lambda m: setattr(m.head_drop, "p", 0.5))
swaps("a frozen backbone and gradient checkpointing", lambda m: (m.requires_grad_(False), m.set_grad_checkpointing()))
