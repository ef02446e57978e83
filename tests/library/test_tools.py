"""Tools of others on converted and folded models: FX, ONNX without our exporter, and attention maps."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import timm
import torch
from timm.utils import AttentionExtract
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

import vitcompact
from tests.conformance.cases import CASES
from tests.conformance.suite import Case
from vitcompact import UsageError, plain_attention
from vitcompact.folding.verify import perturbed
from vitcompact.layers.attention import CompactAttention

VIT = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 4}
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 32, "depths": (2, 1), "num_heads": (2, 4)}
PVT = {"depths": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32), "num_heads": (1, 2, 4, 4)}
FEW = (
    Case("vit", "vit_tiny_patch16_224", VIT, size=32),
    Case("rotary", "eva02_tiny_patch14_224", {**VIT, "img_size": 28}, size=28),
    Case("swin", "swin_tiny_patch4_window7_224", SWIN, size=32),
    Case("beit", "beit_base_patch16_224", VIT, size=32),
    Case("pvt", "pvt_v2_b0", PVT, size=64),
)


SWEPT = [pytest.param(case, id=case.id, marks=() if case in FEW else pytest.mark.sweep) for case in (*FEW, *CASES)]


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[nn.Module, nn.Module]]:
    return {}


def pair(case: Case, made: dict[str, tuple[nn.Module, nn.Module]]) -> tuple[nn.Module, nn.Module, Tensor]:
    """A model, the same with half of its heads hallucinated and folded, and images."""
    if case.id not in made:
        original = perturbed(timm.create_model(case.name, **{"num_classes": 5, **case.kwargs}).eval(), seed=1).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made[case.id] = original, vitcompact.fold(vitcompact.convert(original, ratio=0.5, rank_ratio=0.5))
    return *made[case.id], torch.randn(2, 3, case.size, case.size, generator=torch.Generator().manual_seed(0))


Models = dict[str, tuple[nn.Module, nn.Module]]


@pytest.mark.parametrize("case", SWEPT)
def test_fx_takes_what_it_takes_of_the_original(case: Case, models: Models) -> None:
    original, folded, images = pair(case, models)
    last = [name for name, _ in original.named_children()][-1]
    try:
        create_feature_extractor(original, [last])
    except Exception as error:  # it decides by sizes, or the like
        pytest.skip(f"FX does not take the original: {error}")
    with torch.no_grad():
        wanted: list[Tensor] = []
        hook = folded.get_submodule(last).register_forward_hook(lambda _, __, out: wanted.append(out))
        folded(images)
        hook.remove()
        found = create_feature_extractor(folded, {last: "out"})(images)["out"]
        assert torch.allclose(found, wanted[0], atol=1e-5)


@pytest.mark.parametrize("case", SWEPT)
def test_plain_attention_shows_all_heads(case: Case, models: Models) -> None:
    _, folded, images = pair(case, models)
    maps: dict[str, Tensor] = {}
    ours = {name: module for name, module in folded.named_modules() if isinstance(module, CompactAttention)}
    assert ours
    hooks = [
        module.attn_drop.register_forward_hook(lambda _, __, out, name=name: maps.__setitem__(name, out))
        for name, module in ours.items()
    ]
    with torch.no_grad():
        wanted = folded(images)
        assert not maps
        with plain_attention(folded) as heads:
            found = folded(images)
        assert torch.allclose(found, wanted, atol=1e-5 * float(wanted.abs().max()))
        assert heads.keys() == maps.keys() == ours.keys()
        for name, shown in maps.items():
            told = heads[name]
            assert shown.shape[1] == len(told.kept) + len(told.hallucinated)
            assert torch.allclose(shown.sum(-1), torch.ones(()), atol=1e-4)
            assert all(torch.equal(shown[:, child], shown[:, kept]) for child, kept in told.hallucinated.items())
            assert told.kept == tuple(sorted(ours[name].layout.maps))
        maps.clear()
        assert torch.equal(folded(images), wanted)
        assert not maps
    for hook in hooks:
        hook.remove()


def test_maps_are_those_of_the_original(models: Models) -> None:
    """Before anything is hallucinated or refitted: in the order of the original's heads."""
    original, _, images = pair(FEW[0], models)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compact = vitcompact.convert(original, ratio=0.5, only="heads").eval()
    first = "blocks.0.attn_drop" if "blocks.0.attn_drop" in dict(compact.named_modules()) else "blocks.0.attn.attn_drop"
    extracted: list[Tensor] = []
    for model in (copy.deepcopy(original), compact):
        with plain_attention(model) as heads, torch.no_grad():
            extracted.append(AttentionExtract(model, names=[first], method="hook")(images)[first])
            if model is compact:
                graph = AttentionExtract(model, method="fx")(images)
                assert torch.equal(next(iter(graph.values())), extracted[-1])
    kept = list(heads["blocks.0.attn"].kept)
    assert torch.allclose(extracted[0][:, kept], extracted[1][:, kept], atol=1e-6)


def test_timm_s_own_layers_are_switched_too(models: Models) -> None:
    original, _, _ = pair(FEW[0], models)
    switch = plain_attention(original)
    assert switch.heads == {}
    assert not original.get_submodule("blocks.0.attn").fused_attn
    switch.restore()
    assert original.get_submodule("blocks.0.attn").fused_attn


@pytest.mark.parametrize("dynamo", [pytest.param(True, marks=pytest.mark.sweep), False], ids=["dynamo", "TorchScript"])
@pytest.mark.parametrize("merge", [0, 1])
def test_torch_s_onnx_exporters(dynamo: bool, merge: int, models: Models, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    _, folded, images = pair(FEW[0], models)
    model = vitcompact.fold(folded, merge_tokens=merge)
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (images,), str(path), dynamo=dynamo, verbose=False, input_names=["x"])
    found = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": images.numpy()})[0]
    with torch.no_grad():
        wanted = model(images)
        assert torch.allclose(torch.from_numpy(found), wanted, atol=1e-4 * float(wanted.abs().max()))


def test_fx_of_merged_tokens_is_refused_with_the_way_out(models: Models) -> None:
    merging = vitcompact.fold(pair(FEW[0], models)[1], merge_tokens=1)
    with pytest.raises(UsageError, match=r"token merging: FX cannot trace .* merge_tokens=0"):
        create_feature_extractor(merging, ["norm"])
