"""One map for several heads: its logits are the weighted mean of the group's."""

from __future__ import annotations

import pytest
import torch

from vitcompact.layers.attention import CompactAttention, HeadLayout
from vitcompact.operators.share_qk import GroupMoments
from vitcompact.operators.thin import QkMoments

HEADS, SIZE = 5, 6


@pytest.mark.parametrize("packing", [("qkv",), ("q", "k", "v")])
@pytest.mark.parametrize("children", [((1,), (3,), ()), ((1, 3), (), ())])
@torch.no_grad()
def test_logits_are_the_weighted_mean(packing: tuple[str, ...], children: tuple[tuple[int, ...], ...]) -> None:
    """Where the heads' products fit into one head's width together, the mean is exact up to a shift of each query."""
    torch.manual_seed(0)
    whole = CompactAttention(24, HeadLayout(tuple(range(HEADS)), ((),) * HEADS), SIZE, 4, packing=packing)
    for head in range(HEADS):  # queries of rank 2: three of them fit into six channels
        for rows in whole.rows("q"):
            basis = torch.linalg.qr(torch.randn(SIZE, 2)).Q
            assert rows is not None
            part = slice(head * SIZE, (head + 1) * SIZE)
            rows[part] = 0 if rows.dim() == 1 else basis @ basis.T @ rows[part]
    layout = HeadLayout((2, 0, 4), children)
    core = CompactAttention(24, layout, SIZE, 4, packing=packing)
    for name in "qk":
        for old, new in zip(whole.rows(name), core.rows(name), strict=True):
            assert old is not None
            assert new is not None
            new.unflatten(0, (3, SIZE)).copy_(old.unflatten(0, (HEADS, SIZE))[list(layout.maps)])
    own = core.rows("q")[0][2 * SIZE :].clone()
    x = torch.randn(3, 40, 24)
    q, k, _ = whole.project(whole.inputs(x))
    moments = GroupMoments(core, 0.75)
    moments.add(q, k)
    moments.solve(core, whole)
    logits = q @ k.mT
    shared_q, shared_k, _ = core.project(core.inputs(x))
    got = shared_q @ shared_k.mT
    for place, rest in enumerate(children[:2]):
        kept = logits[:, layout.maps[place]]
        wanted = 0.75 * kept + 0.25 * logits[:, rest].mean(1) if rest else kept
        gap = got[:, place] - wanted
        assert (gap - gap.mean(-1, keepdim=True)).abs().max() < 1e-3 * wanted.abs().max()
    assert torch.equal(core.rows("q")[0][2 * SIZE :], own)  # a map of one head stays what it is


@torch.no_grad()
def test_what_is_kept_is_weighed_as_the_mean_is() -> None:
    """Where the group does not fit into one head's width, what goes is what counts least in the weighted mean."""
    torch.manual_seed(0)
    layout = HeadLayout((2, 0), ((1,), (3,)))
    core = CompactAttention(24, layout, SIZE, 4)
    q, k = torch.randn(3, 4, 40, SIZE), torch.randn(3, 4, 40, SIZE)
    moments, direct = GroupMoments(core, 0.9), QkMoments()
    moments.add(q, k)
    direct.add(torch.cat((0.9 * q[:, [2, 0]], 0.1 * q[:, [1, 3]]), -1), torch.cat((k[:, [2, 0]], k[:, [1, 3]]), -1))
    found, wanted = moments.moments[2].subspaces(), direct.subspaces()
    torch.testing.assert_close(found[2], wanted[2])
    for got, expected in zip(found[:2], wanted[:2], strict=True):
        kept, best = got[..., :SIZE], expected[..., :SIZE]
        torch.testing.assert_close(kept @ kept.mT, best @ best.mT)
