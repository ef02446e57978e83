"""Analysis against direct computation, and the cost counter against sums by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from timm.layers import Attention
from timm.models import VisionTransformer

import vitcompact
from vitcompact.analysis import count
from vitcompact.calibration.similarity import MapSimilarity, weight_similarity
from vitcompact.folding.verify import perturbed
from vitcompact.models.vit import PlainAttention
from vitcompact.operators.factorize import FactorizeSpec
from vitcompact.operators.hallucinate import HallucinateSpec


@pytest.fixture(scope="module")
def vit() -> VisionTransformer:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=64, num_classes=5, num_heads=4)
    return perturbed(model.eval(), seed=1).eval()


def plain_vit_macs(dim: int, depth: int, tokens: int, patches: int, patch: int, classes: int, hidden: int) -> int:
    """Patch embedding, then per block qkv, QK^T and AV, proj, fc1 and fc2, then the head on one token."""
    block = tokens * dim * (3 * dim + dim + 2 * hidden) + 2 * tokens * tokens * dim
    return patches * 3 * patch * patch * dim + depth * block + dim * classes


def test_macs_of_deit_by_hand() -> None:
    model = timm.create_model("deit_small_patch16_224")
    cost = count(model, (3, 224, 224))
    assert cost.macs == plain_vit_macs(384, 12, 197, 196, 16, 1000, 1536)
    assert cost.params == sum(p.numel() for p in model.parameters())


def test_prediction_is_what_fold_gives(vit: VisionTransformer) -> None:
    images = torch.randn(16, 3, 64, 64)
    report = vitcompact.analyze(vit, images)
    folded = vitcompact.fold(vitcompact.convert(vit, images=images, terms=()))
    assert report.predicted == count(folded, (3, 64, 64))
    assert report.predicted.macs < report.cost.macs == count(vit, (3, 64, 64)).macs


def test_similarity_and_energy(vit: VisionTransformer) -> None:
    images = torch.randn(8, 3, 64, 64)
    report = vitcompact.analyze(vit, images, batch_size=4)
    maps, outputs = [], []

    def keep(module: Attention, args: tuple[torch.Tensor]) -> None:
        x = args[0]
        q, k, _ = module.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        maps.append((module.scale * q @ k.transpose(-2, -1)).softmax(-1))

    vit.blocks[1].attn.register_forward_pre_hook(keep)
    vit.blocks[1].mlp.fc2.register_forward_hook(lambda m, a, out: outputs.append(out.double()))
    with torch.no_grad():
        vit(images)
    layer, ffn = report.layers[1], report.ffn[1]
    pair = layer.hallucinated[0]
    direct = torch.cosine_similarity(maps[0][:, pair.head], maps[0][:, pair.parents[0]], dim=-1).mean()
    assert pair.similarity == pytest.approx(float(direct), abs=1e-5)
    rows = outputs[0].flatten(0, 1)
    values = torch.linalg.svdvals(rows - rows.mean(0)).square()
    assert ffn.energy == pytest.approx(float(values[: ffn.rank].sum() / values.sum()), abs=1e-6)
    assert ffn.spectrum[-1] == pytest.approx(1)
    assert report.num_samples == 8


def test_jensen_shannon_bounds() -> None:
    similarity = MapSimilarity(3)
    maps = torch.zeros(1, 3, 2, 4)
    maps[:, 0, :, 0] = maps[:, 1, :, 0] = maps[:, 2, :, 3] = 1.0
    similarity.add(maps)
    assert similarity.jensen_shannon[0, 1] == pytest.approx(1)
    assert similarity.jensen_shannon[0, 2] == pytest.approx(0, abs=1e-6)
    assert similarity.cosine[0, 2] == pytest.approx(0)


def test_weights_only(vit: VisionTransformer) -> None:
    report = vitcompact.analyze(vit)
    assert report.num_samples == 0
    assert report.layers[0].similarity_js is None
    parts = PlainAttention().parts(vit.blocks[0].attn)
    forms = [
        q.T @ k
        for q, k in zip(
            parts.query.double().unflatten(0, (4, -1)), parts.key.double().unflatten(0, (4, -1)), strict=True
        )
    ]
    wanted = (forms[0] * forms[2]).sum() / (forms[0].norm() * forms[2].norm())
    assert float(weight_similarity(parts)[0, 2]) == pytest.approx(float(wanted), abs=1e-6)
    assert math.isfinite(report.ffn[0].energy)


def test_json_keys(vit: VisionTransformer) -> None:
    document = vitcompact.analyze(vit, torch.randn(4, 3, 64, 64)).to_json()
    assert {"model", "params", "macs", "layers", "ffn", "skipped", "predicted"} <= set(document)
    assert {"name", "num_heads", "similarity", "kept", "hallucinated"} <= set(document["layers"][0])
    assert {"head", "parents", "similarity"} <= set(document["layers"][0]["hallucinated"][0])
    assert {"name", "rank", "energy"} <= set(document["ffn"][0])
    assert set(document["predicted"]) == {"params", "macs"}


def test_cost_of_a_model_that_gives_modules_a_parameter() -> None:
    """Attention pooling hands its learned query to a linear layer, which torch's counter does not expect."""
    assert count(timm.create_model("test_vit3", img_size=64), (3, 64, 64)).macs > 0


@pytest.mark.broad
def test_with_a_budget_layers_are_those_of_its_plan(vit: VisionTransformer) -> None:
    """Heads, parents and ranks are what `convert` would do, not what the pair would have done."""
    images = torch.randn(24, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    requests: tuple[dict[str, Any], ...] = ({"target_macs": 0.6}, {"target_macs": 0.8, "ops": ["neurons"]})
    for request in requests:
        report = vitcompact.analyze(vit, images, **request)
        plan = vitcompact.plan(vit, images=images, batch_size=32, **request)
        for heads in report.layers:
            layer = plan.layer(heads.name)
            spec = None if layer is None else layer.find(HallucinateSpec)
            expected = {} if spec is None else {child.head: child.parents for child in spec.hallucinated}
            assert {pair.head: pair.parents for pair in heads.hallucinated} == expected
            assert len(heads.kept) == heads.num_heads - len(expected)
            assert 0 <= heads.similarity <= 1
        for ffn in report.ffn:
            layer = plan.layer(ffn.name)
            factors = None if layer is None else layer.find(FactorizeSpec)
            assert ffn.rank == (ffn.embed if factors is None else factors.rank)
            assert ffn.energy == pytest.approx(1.0) or ffn.rank < ffn.embed
        assert report.budget is not None
        drawn = {layer["name"]: layer["operators"] for layer in report.budget["layers"] if layer["operators"]}
        assert drawn == {layer.name: [spec.to_json() for spec in layer.operators] for layer in plan.layers}
