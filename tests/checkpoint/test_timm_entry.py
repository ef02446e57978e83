"""timm rebuilds our checkpoints, strictly, and treats them like any other model of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import resolve_model_data_config
from timm.models import VisionTransformer, get_model_input_config
from timm.models._hub import save_for_hf
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import nn

from vitcompact.checkpoint import load, save
from vitcompact.errors import CheckpointError, UsageError
from vitcompact.operators.factorize import FactorizeSpec
from vitcompact.operators.replay import replay
from vitcompact.plans.schema import LayerPlan, Plan

from .helpers import perturb

Replay = Callable[[nn.Module, Plan], nn.Module]


@pytest.fixture
def ours(vit: nn.Module, structural_replay: Replay, tmp_path: Path) -> tuple[Path, VisionTransformer]:
    """A saved model whose structure is not the skeleton's, and that model."""
    model = perturb(structural_replay(vit, Plan(layers=(), form="folded")))
    return save(model, tmp_path / "ours"), model


def edit_config(directory: Path, **model_args: Any) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["model_args"].update(model_args)
    path.write_text(json.dumps(config))


def test_timm_rebuilds_structure_and_weights(ours: tuple[Path, VisionTransformer], images: torch.Tensor) -> None:
    directory, original = ours
    model = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    assert torch.equal(model(images), original(images))
    assert model.vitcompact_plan == Plan(layers=(), form="folded")
    assert isinstance(model.blocks[0].mlp.fc2, nn.Sequential)
    assert model.pretrained_cfg["architecture"] == "vitcompact"
    found, expected = resolve_model_data_config(model), resolve_model_data_config(original)
    expected["input_size"] = (3, 64, 64)  # what it is built for; the original was trained at another size
    assert json.dumps(found) == json.dumps(expected)  # timm reads lists where it had tuples
    assert get_model_input_config(model) == get_model_input_config(original)
    for key in ("first_conv", "classifier", "pool_size", "num_classes"):
        assert model.pretrained_cfg[key] == (10 if key == "num_classes" else original.pretrained_cfg[key])
    for name in ("forward_features", "forward_head", "forward_intermediates", "reset_classifier", "no_weight_decay"):
        assert hasattr(model, name)


def test_without_pretrained_the_weights_stay_untrained(ours: tuple[Path, VisionTransformer]) -> None:
    directory, original = ours
    model = timm.create_model(f"local-dir:{directory}", pretrained=False)
    assert model.state_dict().keys() == original.state_dict().keys()
    assert not torch.equal(model.head.weight, original.head.weight)


def test_another_number_of_classes_drops_only_the_head(ours: tuple[Path, VisionTransformer]) -> None:
    directory, original = ours
    model = timm.create_model(f"local-dir:{directory}", pretrained=True, num_classes=7, drop_rate=0.3)
    assert model.head.weight.shape[0] == model.num_classes == 7
    assert model.head_drop.p == 0.3
    kept, expected = model.state_dict(), original.state_dict()
    assert all(torch.equal(kept[name], expected[name]) for name in kept if not name.startswith("head."))


def test_another_image_size_and_number_of_channels(ours: tuple[Path, VisionTransformer], tmp_path: Path) -> None:
    directory, original = ours
    plain = timm.create_model("test_vit", num_classes=10, img_size=64)
    plain.pos_embed = original.pos_embed
    save_for_hf(plain, str(tmp_path / "plain"), safe_serialization=True)
    expected = timm.create_model(f"local-dir:{tmp_path / 'plain'}", pretrained=True, img_size=96).pos_embed
    model = timm.create_model(f"local-dir:{directory}", pretrained=True, img_size=96, in_chans=1)
    assert torch.equal(model.pos_embed, expected)
    assert torch.allclose(model.patch_embed.proj.weight, original.patch_embed.proj.weight.sum(1, keepdim=True))
    assert model(torch.randn(1, 1, 96, 96)).shape == (1, 10)


def test_features_only_matches_the_base_and_uses_the_plan(
    ours: tuple[Path, VisionTransformer], images: torch.Tensor
) -> None:
    directory, original = ours
    wrapper = timm.create_model(f"local-dir:{directory}", pretrained=True, features_only=True).eval()
    reference = timm.create_model("test_vit", pretrained=False, features_only=True, img_size=64).eval()
    assert type(wrapper) is type(reference)
    assert wrapper.feature_info.channels() == reference.feature_info.channels()
    features = wrapper(images)
    assert [f.shape for f in features] == [f.shape for f in reference(images)]
    expected = original.forward_intermediates(images, indices=len(features), intermediates_only=True)
    assert all(torch.equal(got, want) for got, want in zip(features, expected, strict=True))
    last = timm.create_model(f"local-dir:{directory}", pretrained=True, features_only=True, out_indices=[-1]).eval()
    assert len(last(images)) == 1
    early = timm.create_model(f"local-dir:{directory}", pretrained=True, features_only=True, out_indices=[0]).eval()
    assert torch.equal(
        early(images)[0], original.forward_intermediates(images, indices=[0], intermediates_only=True)[0]
    )


def test_features_only_of_a_hierarchical_model(tmp_path: Path) -> None:
    original: PyramidVisionTransformerV2 = perturb(timm.create_model("pvt_v2_b0", pretrained=False, num_classes=3))
    save(original, tmp_path / "pvt")
    images = torch.randn(1, 3, 64, 64)
    wrapper = load(tmp_path / "pvt", features_only=True)
    reference = timm.create_model("pvt_v2_b0", features_only=True)
    assert type(wrapper) is type(reference)
    expected = original.forward_intermediates(images, intermediates_only=True)
    assert all(torch.equal(got, want) for got, want in zip(wrapper(images), expected, strict=True))


def test_timm_can_save_and_reload_the_reloaded_model(
    ours: tuple[Path, VisionTransformer], tmp_path: Path, images: torch.Tensor
) -> None:
    directory, original = ours
    save_for_hf(load(directory), str(tmp_path / "again"), safe_serialization=True)
    assert torch.equal(load(tmp_path / "again")(images), original(images))


def test_built_directly(structural_replay: Replay) -> None:
    args = {"num_classes": 4, "img_size": 64}
    model = timm.create_model("vitcompact", base="test_vit", base_args=args, plan=Plan(layers=()).to_json())
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 4)
    assert model.pretrained_cfg["mean"] == timm.create_model("test_vit").pretrained_cfg["mean"]
    with pytest.raises(UsageError, match="no weights of its own"):
        timm.create_model("vitcompact", base="test_vit", pretrained=True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"base": None}, "needs base"),
        ({"base": 3}, "needs base"),
        ({"base": "vitcompact"}, "unknown timm model 'vitcompact'"),
        ({"base": "test_vti"}, "did you mean"),
        ({"base": "../../etc/passwd"}, "unknown timm model"),
        ({"base": "local-dir:/tmp"}, "unknown timm model"),
        ({"base": "test_vit3"}, "does not fit test_vit3|cannot be built"),
        ({"base": "vit_tiny_patch16_224"}, "does not fit vit_tiny_patch16_224"),
        ({"plan": "rm -rf"}, "plan"),
        ({"plan": {"version": 99, "layers": []}}, "plan version 99 is not supported"),
        ({"plan": {"version": 1}}, "malformed plan"),
        ({"plan": {"version": 1, "layers": [{"name": "x", "kind": "ffn", "operators": [{"op": "exec"}]}]}}, "'exec'"),
        ({"checkpoint_path": "/etc/passwd"}, "may not hold checkpoint_path"),
        ({"surprise": 1}, "surprise"),
        ({"num_classes": 10**12}, "num_classes is 1,000,000,000,000"),
        ({"num_classes": "ten"}, "cannot be built"),
    ],
)
def test_hostile_arguments_are_one_clear_error(
    ours: tuple[Path, VisionTransformer], args: dict[str, Any], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    directory, _ = ours
    edit_config(directory, **args)
    with pytest.raises(CheckpointError, match=message) as caught:
        timm.create_model(f"local-dir:{directory}", pretrained=True)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kwargs", [{}, {"num_classes": 7}, {"features_only": True}, {"img_size": 96}])
def test_never_loads_partially(ours: tuple[Path, VisionTransformer], kwargs: dict[str, Any]) -> None:
    directory, _ = ours
    tensors = load_file(directory / "model.safetensors")
    tensors["blocks.0.mlp.fc2.2.weight"] = tensors.pop("blocks.0.mlp.fc2.0.weight")
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing from the file \(blocks.0.mlp.fc2.0.weight\); 1 unexpected"):
        load(directory, **kwargs)


def test_truncated_weights_are_one_clear_error(ours: tuple[Path, VisionTransformer]) -> None:
    directory, _ = ours
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        timm.create_model(f"local-dir:{directory}", pretrained=True)


def factorized(rank: int, name: str = "blocks.0.mlp") -> Plan:
    return Plan(layers=(LayerPlan(name, "ffn", (FactorizeSpec(rank=rank, branches=1),)),))


def test_a_real_plan_there_and_back(vit: VisionTransformer, tmp_path: Path, images: torch.Tensor) -> None:
    plan = factorized(8)
    original = perturb(replay(vit, plan))
    model = timm.create_model(f"local-dir:{save(original, tmp_path / 'out')}", pretrained=True).eval()
    assert model.vitcompact_plan == plan
    assert (
        model.state_dict().keys() == original.state_dict().keys() != timm.create_model("test_vit").state_dict().keys()
    )
    assert torch.equal(model(images), original(images))


@pytest.mark.parametrize(
    ("plan", "message"), [(factorized(10**9), "rank 1000000000 is too large"), (factorized(8, "x"), "'x'")]
)
def test_a_plan_that_cannot_be_is_refused_before_it_is_built(
    vit: VisionTransformer, tmp_path: Path, plan: Plan, message: str
) -> None:
    out = save(vit, tmp_path / "out")
    edit_config(out, plan=plan.to_json())
    with pytest.raises(CheckpointError, match=message):
        load(out)
