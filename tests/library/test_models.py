"""Models as Python users have them: wrapped, inside modules of their own, of other channels, sizes and precisions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import VisionTransformer
from timm.utils import ModelEmaV3
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.feature_extraction import create_feature_extractor

import vitcompact
from vitcompact import NothingToCompactError, TrainOptions, UsageError
from vitcompact.data import open_model

from .conftest import SIDE

WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "DataParallel": nn.DataParallel,
    "ModelEmaV3": ModelEmaV3,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled DataParallel": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
    "EMA of compiled": lambda model: ModelEmaV3(nn.DataParallel(model)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_of_training_are_taken_off(wrapper: str, vit: VisionTransformer, images: Tensor) -> None:
    wrapped = WRAPPERS[wrapper](vit)
    assert vitcompact.analyze(wrapped, images).layers
    compact = vitcompact.convert(wrapped, images=images)
    assert isinstance(compact, VisionTransformer)
    folded = vitcompact.fold(WRAPPERS[wrapper](compact), images=images)
    expected = vitcompact.convert(vit, images=images)
    with torch.no_grad():
        assert torch.equal(compact(images), expected(images))
        assert torch.allclose(folded(images), expected(images), atol=1e-4)
    if wrapper == "DataParallel":
        result = vitcompact.finetune(
            nn.DataParallel(compact), nn.DataParallel(vit), images, options=TrainOptions(steps=1)
        )
        assert isinstance(result.model, VisionTransformer)


def test_distributed_data_parallel_is_taken_off(vit: VisionTransformer, images: Tensor, tmp_path: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(copy.deepcopy(vit))
        assert isinstance(vitcompact.convert(wrapped, images=images), VisionTransformer)
        converted = vitcompact.convert(nn.Sequential(wrapped), images=images)
        assert isinstance(next(converted.children()), VisionTransformer)
    finally:
        distributed.destroy_process_group()


class Own(nn.Module):
    """A module of a user: a backbone on shrunken images, and a head on its tokens."""

    def __init__(self, backbone: nn.Module, output: str = "tensor") -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(32, 4)
        self.output = output

    def forward(self, x: Tensor) -> Any:
        features: Any = self.backbone.forward_features(nn.functional.avg_pool2d(x, 2))  # type: ignore[operator]
        logits = self.head(features.mean(1))
        if self.output == "dict":
            return {"logits": logits, "features": features}
        return (logits, features) if self.output == "tuple" else [logits] if self.output == "list" else logits


def _sequential(vit: nn.Module) -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(2), vit, nn.Linear(5, 2))


MODULES: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "own": (Own, "backbone"),
    "own, dict": (lambda vit: Own(vit, "dict"), "backbone"),
    "own, tuple": (lambda vit: Own(vit, "tuple"), "backbone"),
    "own, list": (lambda vit: Own(vit, "list"), "backbone"),
    "sequential": (_sequential, "1"),
    "wrapped inside": (lambda vit: _sequential(nn.DataParallel(vit)), "1"),
    "deep": (lambda vit: nn.ModuleDict({"net": Own(vit)})["net"], "backbone"),
}


@pytest.mark.parametrize("kind", MODULES)
def test_a_model_inside_a_module_is_converted_there(kind: str, vit: VisionTransformer, images: Tensor) -> None:
    build, path = MODULES[kind]
    outer = build(vit).train()
    large = nn.functional.interpolate(images, scale_factor=2)
    compact = vitcompact.convert(outer, images=large)
    assert type(compact) is type(outer)
    assert outer.training
    inner = vitcompact.convert(vit, images=nn.functional.avg_pool2d(large, 2))
    with torch.no_grad():
        assert torch.equal(compact.get_submodule(path)(images), inner(images))
    assert vitcompact.results(compact).plan == vitcompact.results(inner).plan
    folded = vitcompact.fold(compact.eval(), images=large)
    assert vitcompact.results(folded).parity is not None
    with torch.no_grad():
        ours, before = (_first(model(large)) for model in (folded, compact))
        assert torch.allclose(ours, before, atol=1e-4)
        assert not torch.allclose(before, _first(outer.eval()(large)), atol=1e-4)
    assert "forward_features" not in vars(vit)


def _first(output: Any) -> Tensor:
    if isinstance(output, dict):
        output = output["logits"]
    tensor = output[0] if isinstance(output, (tuple, list)) else output
    assert isinstance(tensor, Tensor)
    return tensor


def test_features_only_models_are_converted_inside(images: Tensor) -> None:
    args = {"img_size": SIDE, "embed_dim": 32, "depth": 3, "num_heads": 2}
    model = timm.create_model("test_vit2", features_only=True, **args).eval()
    compact = vitcompact.convert(model, images=images)
    with torch.no_grad():
        ours, before = compact(images), model(images)
    assert [tensor.shape for tensor in ours] == [tensor.shape for tensor in before]
    assert not torch.equal(ours[-1], before[-1])


def _two(vit: nn.Module) -> nn.Module:
    return nn.ModuleList([Own(vit), Own(copy.deepcopy(vit))])


def _unused(vit: nn.Module) -> nn.Module:
    class Unused(Own):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    return Unused(vit)


REFUSED: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "fx": (lambda vit: create_feature_extractor(vit, ["norm"]), "an FX graph.* make the graph of the result"),
    "several": (_two, r"several timm models \(`model\.0\.backbone`, `model\.1\.backbone`\)"),
    "not called": (_unused, "at `backbone` is not called"),
    "fails": (lambda vit: nn.Sequential(nn.Linear(7, 7), vit), "Sequential does not take the images: RuntimeError"),
    "not images": (
        lambda vit: nn.Sequential(nn.Flatten(), vit),
        "at `1` is called with something else than images",
    ),
    "stages": (
        lambda vit: timm.create_model("resnet10t", features_only=True),
        "a features_only model cut into its layers: .* features_only=True",
    ),
    "none": (lambda vit: nn.Conv2d(3, 3, 1), "must be a timm module, got Conv2d"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_holds_no_model_that_can_be_converted_is_refused(
    kind: str, vit: VisionTransformer, images: Tensor
) -> None:
    build, message = REFUSED[kind]
    with pytest.raises(UsageError, match=message):
        vitcompact.convert(build(vit), images=images)


@pytest.mark.parametrize(
    ("channels", "size"),
    [(1, (SIDE, SIDE)), (2, (2 * SIDE, SIDE)), (3, (SIDE, 2 * SIDE)), (4, (SIDE, SIDE)), (12, (SIDE, SIDE))],
)
def test_channels_and_sizes(channels: int, size: tuple[int, int], tmp_path: Any) -> None:
    args = {"img_size": size, "in_chans": channels, "num_classes": 5, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = timm.create_model("test_vit2", **args).eval()
    images = torch.randn(8, channels, *size)
    folded = vitcompact.fold(vitcompact.convert(model, images=images), images=images)
    again = vitcompact.load(vitcompact.save(folded, tmp_path / "out"))
    with torch.no_grad():
        assert torch.equal(again(images), folded(images))
    assert vitcompact.evaluate(again, images, reference=model).agreement is not None


def test_one_class_has_scores_that_can_fail(images: Tensor) -> None:
    args = {"img_size": SIDE, "num_classes": 1, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = timm.create_model("test_vit2", **args).eval()
    with torch.no_grad():
        positive = (model(images)[:, 0] > 0).long()
    assert vitcompact.evaluate(model, images, positive).top1 == 100
    assert vitcompact.evaluate(model, images, 1 - positive).top1 == 0
    other = copy.deepcopy(model)
    other.head.weight.data.neg_()
    other.head.bias.data.neg_()
    assert vitcompact.evaluate(model, images, reference=other).agreement == 0
    losses = vitcompact.plan(model, images=images, target_macs=0.8).to_json()
    assert losses["layers"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_training_gives_a_model_s_own_precision_back(
    dtype: torch.dtype, vit: VisionTransformer, images: Tensor
) -> None:
    original = copy.deepcopy(vit).to(dtype)
    compact = vitcompact.convert(original, images=images)
    trained = vitcompact.finetune(compact, original, images, options=TrainOptions(steps=1)).model
    for model in (original, compact, trained):
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}


class Adapter(nn.Module):
    """A low-rank adapter around a linear layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.add = nn.Linear(layer.in_features, layer.out_features, bias=False)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.layer(x) + self.add(x)
        return added


class OwnLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def _own_linear(layer: nn.Linear) -> nn.Linear:
    own = OwnLinear(layer.in_features, layer.out_features)
    own.load_state_dict(layer.state_dict())
    return own


def _hook(module: nn.Module) -> None:
    module.register_forward_hook(lambda _, __, output: output * 1.5)


CHANGES: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "hook on attention": (lambda block: _hook(block.attn), "attn", "it has hooks"),
    "hook on qkv": (lambda block: _hook(block.attn.qkv), "attn", "its qkv has hooks"),
    "hook on fc2": (lambda block: _hook(block.mlp.fc2), "mlp", "its fc2 has hooks"),
    "adapter on qkv": (
        lambda block: setattr(block.attn, "qkv", Adapter(block.attn.qkv)),
        *("attn", "its qkv is a Adapter, an adapter"),
    ),
    "adapter on proj": (
        lambda block: setattr(block.attn, "proj", Adapter(block.attn.proj)),
        *("attn", "its proj is a Adapter"),
    ),
    "adapter on fc1": (
        lambda block: setattr(block.mlp, "fc1", Adapter(block.mlp.fc1)),
        *("mlp", "its fc1 is a Adapter"),
    ),
    "own linear layer": (
        lambda block: setattr(block.mlp, "fc2", _own_linear(block.mlp.fc2)),
        *("mlp", "its fc2 is a OwnLinear"),
    ),
    "forward of attention": (
        lambda block: setattr(block.attn, "forward", lambda x, **_: x),
        *("attn", "it has a forward that was replaced"),
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_users_put_on_layers_survives(kind: str, vit: VisionTransformer, images: Tensor) -> None:
    change, layer, reason = CHANGES[kind]
    model = copy.deepcopy(vit)
    change(model.blocks[0])
    compact = vitcompact.convert(model, images=images)
    plan = vitcompact.results(compact).plan
    assert {item.name: item.reason for item in plan.skipped}[f"blocks.0.{layer}"].startswith(reason)
    assert f"blocks.0.{layer}" not in {item.name for item in plan.layers}
    assert "blocks.1.attn" in {item.name for item in plan.layers}
    with torch.no_grad():
        x = torch.randn(2, 5, 32)
        ours, before = (made.get_submodule(f"blocks.0.{layer}")(x) for made in (compact, model))
        assert torch.equal(ours, before)


def test_a_model_of_adapters_only_says_so(vit: VisionTransformer, images: Tensor) -> None:
    model = copy.deepcopy(vit)
    for block in model.blocks:
        block.attn.qkv, block.mlp.fc2 = Adapter(block.attn.qkv), Adapter(block.mlp.fc2)
    with pytest.raises(NothingToCompactError, match="Adapter"):
        vitcompact.convert(model, images=images)


def test_outputs_that_nothing_can_be_measured_in_are_refused_before_the_work(
    vit: VisionTransformer, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(vit)
    monkeypatch.setattr("vitcompact.surgery.job.convert_calibrated", lambda *_, **__: pytest.fail("the work has begun"))
    model.head = nn.Unflatten(1, (4, 8))
    with pytest.raises(UsageError, match=r"a classifier gives \(images, classes\), this model gives \(2, 4, 8\)"):
        vitcompact.convert(model, images=images)
    model.head = nn.Linear(7, 7)
    with pytest.raises(UsageError, match="this model does not run on the images: RuntimeError"):
        vitcompact.convert(model, images=images)


def test_opening_finds_the_model(vit: VisionTransformer) -> None:
    opened = open_model(Own(nn.DataParallel(vit)))
    assert (opened.model, opened.path) == (vit, "backbone")
