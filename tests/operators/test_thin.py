"""Thinner heads against direct solutions, and what they leave of the maps."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

import vitcompact
from vitcompact.errors import DataError, UsageError
from vitcompact.layers.attention import CompactAttention, HeadLayout
from vitcompact.layers.narrow import narrow
from vitcompact.models import inspect
from vitcompact.models.cores import core_of
from vitcompact.operators import thin
from vitcompact.plans.schema import LayerPlan, Plan
from vitcompact.plans.specs import OperatorSpec


def rows(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def core(packing: tuple[str, ...] = ("qkv",), layout: HeadLayout | None = None) -> CompactAttention:
    torch.manual_seed(0)
    made = CompactAttention(24, layout or HeadLayout((0, 1, 2), ((), (), ())), 8, 6, packing=packing, identity=True)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return made.eval().requires_grad_(False)


def test_products_of_low_rank_are_kept_exactly() -> None:
    """Queries that live in three dimensions need no more than three, whatever the keys do."""
    made = core()
    weight, bias = made.rows("q")
    basis = torch.linalg.qr(rows(1, 8, 3)).Q.float()
    for head in range(3):
        part = slice(8 * head, 8 * head + 8)
        weight[part] = basis @ basis.T @ weight[part]
        assert bias is not None
        bias[part] = basis @ basis.T @ bias[part]
    x = torch.randn(4, 10, 24)
    wanted = made(x)
    moments = thin.QkMoments()
    q, k, _ = made.project(made.inputs(x))
    moments.add(q, k)
    query, key, energy = moments.subspaces()
    assert energy[:, 3:].max() < 1e-6
    thin.set_qk(made, query, key, 3)
    assert made.qk_dim == 3
    assert made.rows("q")[0].shape == (9, 24)
    torch.testing.assert_close(made(x), wanted, rtol=1e-3, atol=1e-4)


def test_truncation_is_the_best_for_independent_queries_and_keys() -> None:
    """No pair of random projections of the same rank leaves less of the logits out (moments taken as independent)."""
    q, k = rows(0, 1, 1, 400, 6), rows(1, 1, 1, 400, 6)
    q, k = q @ torch.diag(torch.logspace(0, -1, 6, dtype=q.dtype)), k @ rows(2, 6, 6)
    moments = thin.QkMoments()
    moments.add(q, k)
    query, key, energy = moments.subspaces()
    centred = k[0, 0] - k[0, 0].mean(0)
    c_q, c_k = q[0, 0].T @ q[0, 0], centred.T @ centred

    def lost(left: Tensor, right: Tensor) -> float:
        gap = torch.eye(6, dtype=q.dtype) - left @ right.T
        return float((gap.T @ c_q @ gap * c_k).sum())

    best = lost(query[0, :, :2], key[0, :, :2])
    assert best == pytest.approx(float(energy[0, 2:].sum() * (c_q * c_k).sum()), rel=1e-6)
    for seed in range(30):
        assert best < lost(rows(seed, 6, 2), torch.linalg.pinv(rows(seed, 6, 2)).T)


def test_a_shift_of_all_keys_changes_nothing() -> None:
    q, k = rows(0, 2, 1, 30, 4), rows(1, 2, 1, 30, 4)
    first, second = thin.QkMoments(), thin.QkMoments()
    first.add(q, k)
    second.add(q, k + rows(2, 2, 1, 1, 4) * 10)
    torch.testing.assert_close(first.key, second.key)
    with pytest.raises(DataError, match=r"blocks\.2"):
        thin.QkMoments("blocks.2").add(q, k * float("inf"))


@pytest.mark.parametrize("packing", [("qkv",), ("q", "kv"), ("q", "k", "v")])
def test_values_of_low_rank_are_kept_exactly(packing: tuple[str, ...]) -> None:
    made = core(packing)
    weight, bias = made.rows("v")
    basis = torch.linalg.qr(rows(1, 6, 2)).Q.float()
    assert bias is not None
    for head in range(3):
        part = slice(6 * head, 6 * head + 6)
        weight[part], bias[part] = basis @ basis.T @ weight[part], basis @ basis.T @ bias[part]
    made.beta = nn.Parameter(torch.zeros(18), requires_grad=False)
    x = torch.randn(4, 10, 24)
    wanted = made(x)
    q, k, v = made.project(made.inputs(x))
    outputs = made.attend(q, k, v, made.inputs(x)).double().unflatten(-1, (3, 6)).flatten(0, 1)
    centred = outputs - outputs.mean(0)
    covariance = torch.einsum("nhi,nhj->hij", outputs, outputs) + 0 * centred.sum()
    bases, energy = thin.value_bases(covariance, made.proj.weight)
    assert energy[:, 2:].max() < 1e-6 * energy[:, 0].min()
    thin.set_vo(made, bases[..., :2], covariance)
    assert made.v_dim == 2
    assert made.proj.in_features == 6
    torch.testing.assert_close(made(x), wanted, rtol=1e-3, atol=1e-4)


def test_hallucinated_heads_keep_working_when_narrowed() -> None:
    layout = HeadLayout((2, 0), ((1,), (3,)))
    made = core(layout=layout)
    narrow(made, qk_dim=4, v_dim=3)
    assert made.rows("q")[0].shape == (8, 24)
    assert made.rows("v")[0].shape == (12, 24)
    assert made(torch.randn(2, 5, 24)).shape == (2, 5, 24)
    with pytest.raises(UsageError, match="4 wide, 8 is not narrower"):
        narrow(made, qk_dim=8)


def test_what_cannot_be_absorbed_is_refused() -> None:
    model = timm.create_model("test_vit", qk_norm=True)
    made = core_of(model, inspect(model).attention[0])
    with pytest.raises(UsageError, match="thin-qk: queries and keys are normalised"):
        narrow(made, qk_dim=8)
    narrow(made, v_dim=8)
    model = timm.create_model("test_vit", scale_attn_norm=True)
    with pytest.raises(UsageError, match="thin-vo: the heads' outputs are normalised"):
        narrow(core_of(model, inspect(model).attention[0]), v_dim=8)


@pytest.mark.parametrize("images", [None, torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))])
@pytest.mark.parametrize(
    ("spec", "kwargs"),
    [(thin.ThinQkSpec(16), {"qk_norm": True}), (thin.ThinVoSpec(16), {"scale_attn_norm": True})],
    ids=["qk", "vo"],
)
@torch.no_grad()
def test_heads_of_their_full_width_are_left_as_they_are(
    spec: OperatorSpec, kwargs: dict[str, bool], images: Tensor | None
) -> None:
    """Norms that do not let them be narrowed would not let them be turned either."""
    model = timm.create_model("test_vit", depth=1, embed_dim=32, num_heads=2, img_size=64, num_classes=3, **kwargs)
    name = inspect(model.eval()).attention[0].name
    torch.nn.init.normal_(model.get_parameter(f"{name}.{'norm' if 'scale_attn_norm' in kwargs else 'q_norm'}.weight"))
    plan = Plan(layers=(LayerPlan(name, "attention", (spec,)),))
    compact = vitcompact.convert(model, images=images, plan=plan)
    x = torch.randn(2, 3, 64, 64)
    found = compact.get_submodule(name)
    assert isinstance(found, CompactAttention)
    assert torch.equal(found.rows("q")[0], model.get_parameter(f"{name}.qkv.weight")[:32])
    assert torch.equal(found.rows("v")[0], model.get_parameter(f"{name}.qkv.weight")[64:])
    if images is None:
        torch.testing.assert_close(compact(x), model(x))
