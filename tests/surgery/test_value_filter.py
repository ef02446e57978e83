"""The conv path through the whole job: solved, counted, folded, saved, replayed, and refused where there is no grid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import Tensor, nn

import vitcompact
from tests.attached import plan_of
from vitcompact.analysis import count
from vitcompact.calibration.streams import Streams
from vitcompact.errors import UsageError
from vitcompact.folding.verify import perturbed
from vitcompact.models.plain_vit import no_patch_grid
from vitcompact.operators import refit
from vitcompact.operators.hallucinate import HallucinateSpec
from vitcompact.plans.schema import Plan
from vitcompact.surgery import calibrated

SIZE, GRID = 64, 4
TERMS = ("identity", "conv")


def model_of(name: str = "test_vit2", **kwargs: Any) -> VisionTransformer:
    torch.manual_seed(0)
    options = {"dynamic_img_size": False, **kwargs}
    model = timm.create_model(name, img_size=SIZE, num_classes=5, num_heads=4, embed_dim=64, depth=2, **options)
    return perturbed(model.eval(), seed=1).eval()


class LocalHead(nn.Module):
    """Timm's attention plus a 3x3 mean of its own input over the grid: what no map of another head can give."""

    def __init__(self, attention: nn.Module, prefix: int) -> None:
        super().__init__()
        self.attention, self.prefix = attention, prefix

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        image = x[:, self.prefix :].unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2)
        local = F.avg_pool2d(image, 3, 1, 1).permute(0, 2, 3, 1).flatten(1, 2)
        out: Tensor = self.attention(x, **kwargs) + F.pad(local, (0, 0, self.prefix, 0))
        return out


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(64, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def kept(images: Tensor) -> VisionTransformer:
    """A conversion in which held-out images are not asked: filters stay everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refit, "filter_helps", lambda filtered, fitted: True)
        return vitcompact.convert(model_of(), images=images, terms=TERMS)


def specs(plan: Plan) -> list[HallucinateSpec]:
    return [spec for layer in plan.layers if (spec := layer.find(HallucinateSpec)) is not None]


@torch.no_grad()
def test_filters_lower_the_error_of_a_local_layer(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets with a local part, which no map of another head can give, are met much better with filters."""
    model = model_of()
    run = Streams.inputs

    def local(streams: Any, site: Any, module: str, num_images: int | None = None, into: Any = ()) -> Any:
        for got, target in run(streams, site, module, num_images, into):
            if module.endswith("attn"):
                layer = LocalHead(streams.original.get_submodule(module), model.num_prefix_tokens)
                out = layer(*got.args, **got.kwargs)
                target = torch.cat((out, out), dim=-1)
            yield got, target

    monkeypatch.setattr(Streams, "inputs", local)
    errors: dict[tuple[str, ...], list[float]] = {}
    solved = calibrated.solve
    for terms in (("identity",), TERMS):

        def keep(*args: Any, terms: tuple[str, ...] = terms) -> Any:
            result = solved(*args)
            errors.setdefault(terms, []).append(result.error)
            return result

        monkeypatch.setattr(calibrated, "solve", keep)
        vitcompact.convert(model, images=images, terms=terms, only="heads")
    assert all(with_conv < 0.7 * without for without, with_conv in zip(*errors.values(), strict=True))


@torch.no_grad()
def test_held_out_images_decide(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit, "filter_helps", lambda filtered, fitted: False)
    dropped = vitcompact.convert(model_of(), images=images, terms=TERMS)
    assert [spec.conv for spec in specs(plan_of(dropped))] == [False, False]
    without = vitcompact.convert(model_of(), images=images)
    assert dropped.vitcompact_plan == without.vitcompact_plan
    assert torch.equal(dropped(images), without(images))


@torch.no_grad()
def test_folded_saved_and_counted(kept: VisionTransformer, images: Tensor, tmp_path: Path) -> None:
    moved = perturbed(kept, seed=2).eval()
    folded = vitcompact.fold(moved, images=images[:8])
    assert [spec.conv for spec in specs(plan_of(folded))] == [True, True]
    vitcompact.save(folded, tmp_path / "out")
    again = vitcompact.load(tmp_path / "out").eval()
    assert torch.equal(again(images), folded(images))
    plain = vitcompact.fold(vitcompact.convert(model_of(), images=images))
    with_filters, without = (count(m, (3, SIZE, SIZE)) for m in (folded, plain))
    assert with_filters.params - without.params == 2 * 4 * 9
    assert with_filters.macs - without.macs == 2 * 9 * 64 * GRID**2
    silent = perturbed(kept, seed=2).eval()
    for layer in plan_of(kept).layers:
        if layer.kind == "attention":
            silent.get_parameter(f"{layer.name}.conv.weight").zero_()
    assert (silent(images) - moved(images)).abs().max() > 1e-3
    assert [spec.conv for spec in specs(plan_of(vitcompact.fold(silent)))] == [False, False]


@torch.no_grad()
def test_replayed_and_other_interfaces(kept: VisionTransformer, images: Tensor) -> None:
    plan = Plan.from_json(plan_of(kept).to_json())
    assert plan == kept.vitcompact_plan
    features = kept.forward_intermediates(images[:2], intermediates_only=True)
    assert features[0].shape == (2, 64, GRID, GRID)
    kept.set_input_size(img_size=(96, 96))
    assert kept(torch.randn(1, 3, 96, 96)).shape == (1, 5)
    kept.set_input_size(img_size=(SIZE, SIZE))
    with pytest.raises(UsageError, match="conv"):
        vitcompact.fold(kept, merge_tokens=2)


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("test_vit2", {"dynamic_img_size": True}, "dynamic_img_size"),
        ("test_vit2", {"patch_drop_rate": 0.5}, "drops patches"),
        ("visformer_tiny", {}, "no plain ViT"),
    ],
)
@torch.no_grad()
def test_left_out_with_the_reason_where_no_grid_is_known(
    name: str, kwargs: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    if name == "visformer_tiny":
        model = timm.create_model(name, img_size=SIZE, embed_dim=48, depth=(1, 1, 1), num_heads=4, num_classes=5).eval()
    else:
        model = model_of(name, **kwargs)
    compact = vitcompact.convert(model, images=torch.randn(16, 3, SIZE, SIZE), terms=TERMS, only="heads")
    assert "no conv paths" in caplog.text
    assert reason in caplog.text
    assert not any(spec.conv for spec in specs(plan_of(compact)))
    plan = plan_of(compact)
    layers = tuple(
        replace(layer, operators=tuple(replace(spec, conv=True) for spec in specs(Plan((layer,)))))
        for layer in plan.layers
    )
    with pytest.raises(UsageError, match=reason):
        vitcompact.convert(model, images=torch.randn(16, 3, SIZE, SIZE), plan=replace(plan, layers=layers))


def test_which_models_tell_their_grid() -> None:
    assert no_patch_grid(model_of()) is None
    eva = timm.create_model("eva02_tiny_patch14_224", img_size=56, embed_dim=48, depth=1, num_heads=4)
    assert no_patch_grid(eva) is None
    assert no_patch_grid(nn.Linear(2, 2)) is not None
