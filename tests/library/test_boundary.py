"""What Python users get wrong is refused by name, before the long work, by every function that takes it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

import vitcompact
from tests.attached import parity_of
from vitcompact import CheckpointError, DataError, TrainOptions, UsageError
from vitcompact.folding.verify import perturbed

from .conftest import SIDE

Call = Callable[[Any, Any], object]

FUNCTIONS: dict[str, Call] = {
    "analyze": lambda model, images: vitcompact.analyze(model, images),
    "plan": lambda model, images: vitcompact.plan(model, images=images, target_macs=0.8),
    "convert": lambda model, images: vitcompact.convert(model, images=images),
    "finetune": lambda model, images: vitcompact.finetune(model, model, images, options=TrainOptions(steps=1)),
    "fold": lambda model, images: vitcompact.fold(model, images=images, merge_tokens=1),
    "evaluate": lambda model, images: vitcompact.evaluate(model, images, reference=model),
}

IMAGES: dict[str, tuple[Tensor, str]] = {
    "size": (
        torch.zeros(4, 3, 2 * SIDE, SIDE),
        r"are 3 x 64 x 32, which .* take \(Input height.*give 3 x 32 x 32",
    ),
    "pixels": (torch.rand(4, 3, SIDE, SIDE) * 255, "images must be normalised .* got values up to 25"),
    "integers": (torch.zeros(4, 3, SIDE, SIDE, dtype=torch.uint8), "images must be normalised .* torch.uint8"),
    "channels": (torch.zeros(4, 1, SIDE, SIDE), r"images must have the shape \(n, 3, height, width\), got \(4, 1"),
    "channels last": (torch.zeros(4, SIDE, SIDE, 3), "channels come second"),
    "one image": (torch.zeros(3, SIDE, SIDE), r"images must have the shape .* got \(3, "),
    "none": (torch.zeros(0, 3, SIDE, SIDE), "empty|no images"),
    "no pixels": (torch.zeros(4, 3, 0, 0), r"does not take \(Input height"),
    "nan": (torch.full((4, 3, SIDE, SIDE), float("nan")), "not finite"),
}


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_images(function: str, kind: str, vit: VisionTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    images, message = IMAGES[kind]
    monkeypatch.setattr(type(vit), "forward_features", _never)
    with pytest.raises(UsageError, match=message):
        FUNCTIONS[function](vit, images)


@pytest.mark.parametrize("where", ["blocks.1.mlp.fc1.weight", "head.weight", "pos_embed"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("function", sorted(FUNCTIONS.keys() - {"evaluate"}))
def test_weights_that_are_not_finite(
    function: str, value: float, where: str, vit: VisionTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is measured, left unconverted without a word, or looped over for ever."""
    model = copy.deepcopy(vit)
    model.get_parameter(where).data.view(-1)[0] = value
    monkeypatch.setattr(type(vit), "forward_features", _never)
    with pytest.raises(CheckpointError, match=f"damaged: {where} holds NaN or infinite values"):
        FUNCTIONS[function](model, torch.randn(4, 3, SIDE, SIDE))


def _never(self: VisionTransformer, x: Tensor, **_: Any) -> Tensor:
    """The model does not run; its patch embedding still says which images it refuses."""
    self.patch_embed(x)
    raise AssertionError("the work has begun") if x.device.type != "meta" else RuntimeError("the work has begun")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_other_sizes_are_taken_where_the_model_takes_them(function: str) -> None:
    model = timm.create_model("test_vit2", img_size=SIDE, dynamic_img_size=True, num_classes=5, embed_dim=32, depth=2)
    if function == "fold":
        pytest.skip("tokens do not merge on a grid that changes")
    FUNCTIONS[function](model.eval(), torch.randn(8, 3, 2 * SIDE, SIDE))


@pytest.mark.parametrize("function", ["analyze", "convert", "evaluate"])
def test_models_of_one_channel(function: str) -> None:
    model = timm.create_model("test_vit2", img_size=SIDE, in_chans=1, num_classes=5, embed_dim=32, depth=2).eval()
    FUNCTIONS[function](model, torch.randn(8, 1, SIDE, SIDE))
    with pytest.raises(UsageError, match=r"\(n, 1, height, width\), got \(8, 3"):
        FUNCTIONS[function](model, torch.randn(8, 3, SIDE, SIDE))


class Wrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model


@pytest.mark.parametrize("function", ["analyze", "plan", "convert", "finetune", "fold"])
def test_other_modules(function: str, vit: VisionTransformer, images: Tensor) -> None:
    call = FUNCTIONS[function]
    refused = r"model must be a timm module, got Wrapper: .*`model\.backbone`"
    with pytest.raises(UsageError, match=refused if function == "finetune" else "Wrapper does not take the images"):
        call(Wrapper(vit), images)
    with pytest.raises(UsageError, match="model must be a timm module, got Linear, as timm"):
        call(nn.Linear(3, 3), images)
    with pytest.raises(UsageError, match=r"model must be a timm module, got the text 'vit'"):
        call("vit", images)
    mixed = copy.deepcopy(vit)
    mixed.blocks[0].half()
    with pytest.raises(UsageError, match=r"one type, got float16 and float32: pass model\.float\(\)"):
        call(mixed, images)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_come_back(dtype: torch.dtype, vit: VisionTransformer, images: Tensor) -> None:
    model = copy.deepcopy(vit).to(dtype)
    compact = vitcompact.convert(model, images=images, branches=1)
    folded = vitcompact.fold(perturbed(compact, seed=2), images=images)
    for made in (compact, folded):
        assert {p.dtype for p in made.parameters()} == {dtype}
    wanted = vitcompact.convert(copy.deepcopy(model).float(), images=images, branches=1)
    assert all(
        torch.equal(a, b.to(dtype)) for a, b in zip(compact.parameters(), wanted.parameters(), strict=True)
    )  # solved in float32, cast once
    assert (parity_of(folded).cast_max_abs_diff > 0) == (dtype != torch.float64)
    assert vitcompact.evaluate(folded, images, reference=vit).num_samples == len(images)
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_a_teacher_in_half_precision(vit: VisionTransformer, images: Tensor) -> None:
    teacher = copy.deepcopy(vit).half()
    results = [
        vitcompact.finetune(perturbed(vit, seed=3), given, images, options=TrainOptions(steps=1)).model
        for given in (teacher, copy.deepcopy(teacher).float())
    ]
    assert next(teacher.parameters()).dtype == torch.float16
    with torch.no_grad():
        assert torch.equal(results[0](images), results[1](images))


def test_the_kind_of_error(vit: VisionTransformer) -> None:
    for kind in ("size", "pixels"):
        with pytest.raises(DataError):
            vitcompact.convert(vit, images=IMAGES[kind][0])
