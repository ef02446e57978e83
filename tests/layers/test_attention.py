"""The attention core against an oracle that builds every map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcompact.errors import UsageError
from vitcompact.layers.attention import CompactAttention, HeadLayout
from vitcompact.layers.backends import BACKENDS

EVEN = HeadLayout((2, 0), ((1,), (3,)))
UNEVEN = HeadLayout((1, 0), ((2,), ()))
WIDE = HeadLayout((3,), ((0, 1, 2),))
ALL_PATHS = {"identity": True, "mean": True, "conv": True, "filter_rank": 1}
PREFIX, GRID = 1, (3, 3)
TOKENS = PREFIX + 9


def core(layout: HeadLayout, **kwargs: Any) -> CompactAttention:
    """A core with random values everywhere, so that no path is silent."""
    torch.manual_seed(0)
    module = CompactAttention(24, layout, 5, 7, alpha=True, num_prefix_tokens=PREFIX, grid_size=GRID, **kwargs)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return module.eval()


def fused(module: CompactAttention) -> nn.Linear:
    assert isinstance(module.qkv, nn.Linear)
    return module.qkv


def shift_matrix(kernel: Tensor, first: bool) -> Tensor:
    """A 3x3 filter over the token grid as a `(tokens, tokens)` matrix; prefix tokens pass through term 0 only."""
    height, width = GRID
    matrix = torch.zeros(TOKENS, TOKENS)
    matrix[:PREFIX, :PREFIX] = torch.eye(PREFIX) * float(first)
    for y in range(height):
        for x in range(width):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        row, column = PREFIX + y * width + x, PREFIX + (y + dy) * width + x + dx
                        matrix[row, column] = kernel[dy + 1, dx + 1]
    return matrix


def oracle(module: CompactAttention, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """`A_g = alpha (sum_t U_t A_p V_t + beta I + gamma J + K)` with every map built, head by head."""
    batch, tokens, _ = x.shape
    width = module.num_maps * module.qk_dim
    q, k, v = fused(module)(x).split((width, width, module.attn_dim), dim=-1)
    q, k = (t.view(batch, tokens, module.num_maps, module.qk_dim).transpose(1, 2) for t in (q, k))
    scores = module.scale * module.q_norm(q) @ module.k_norm(k).transpose(-2, -1)
    allowed = torch.ones(tokens, tokens, dtype=torch.bool)
    if causal:
        allowed = allowed.tril()
    elif mask is not None:
        allowed = mask
    maps = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
    uniform = allowed.float() / allowed.sum(-1, keepdim=True)
    heads: list[Tensor] = []
    child = 0
    for index, rest in enumerate(module.layout.children):
        for position in range(1 + len(rest)):
            values = v[..., len(heads) * module.v_dim : (len(heads) + 1) * module.v_dim]
            attention, alpha = maps[:, index], torch.ones(())
            if position and module.filter is not None:
                filters = zip(module.filter.query[:, child], module.filter.key[:, child], strict=True)
                attention = sum(
                    shift_matrix(u, t == 0) @ attention @ shift_matrix(w, t == 0) for t, (u, w) in enumerate(filters)
                )
            if position:
                assert module.alpha is not None
                alpha, child = module.alpha[child], child + 1
            columns = slice(len(heads) * module.v_dim, (len(heads) + 1) * module.v_dim)
            out = attention @ values
            if module.beta is not None:
                out = out + values * module.beta[columns]
            if module.gamma is not None:
                out = out + (uniform @ values) * module.gamma[columns]
            if module.conv is not None:
                out = out + shift_matrix(module.conv.weight[len(heads)], False) @ values
            heads.append(alpha * out)
    out = module.inner_norm(torch.cat(heads, dim=-1))
    if module.gate is not None:
        out = out * module.gate(x).sigmoid()
    return module.proj(out)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("layout", [EVEN, UNEVEN, WIDE], ids=["even", "uneven", "wide"])
@pytest.mark.parametrize(
    "options",
    [{}, {"identity": True}, {"mean": True}, {"conv": True}, {"filter_rank": 2}, ALL_PATHS],
    ids=["plain", "identity", "mean", "conv", "filter", "all"],
)
def test_equals_the_oracle(backend: str, layout: HeadLayout, options: dict[str, Any]) -> None:
    module, x = core(layout, **options), torch.randn(2, TOKENS, 24)
    module.backend = backend
    torch.testing.assert_close(module(x), oracle(module, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [False, True])
def test_masks(backend: str, causal: bool) -> None:
    module, x = core(UNEVEN, identity=True, mean=True), torch.randn(2, TOKENS, 24)
    module.backend = backend
    mask = None if causal else torch.rand(TOKENS, TOKENS) > 0.4
    if mask is not None:
        mask |= torch.eye(TOKENS, dtype=torch.bool)
    wanted = oracle(module, x, mask, causal)
    torch.testing.assert_close(module(x, attn_mask=mask, is_causal=causal), wanted, rtol=1e-4, atol=1e-5)
    if mask is not None:
        additive = torch.zeros(TOKENS, TOKENS).masked_fill(~mask, float("-inf"))
        torch.testing.assert_close(module(x, attn_mask=additive), wanted, rtol=1e-4, atol=1e-5)


def test_norms_and_gate() -> None:
    parts = {"query_norm": nn.LayerNorm(5), "key_norm": nn.LayerNorm(5), "inner_norm": nn.LayerNorm(28), "gate": True}
    module, x = core(EVEN, **parts), torch.randn(2, TOKENS, 24)
    torch.testing.assert_close(module(x), oracle(module, x), rtol=1e-4, atol=1e-5)


def test_mean_path_refuses_masks_per_head() -> None:
    module = core(EVEN, mean=True)
    with pytest.raises(UsageError, match="one attention mask"):
        module(torch.randn(1, TOKENS, 24), attn_mask=torch.zeros(1, 2, TOKENS, TOKENS))


def test_hallucinated_maps_are_never_built(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[torch.Size] = []
    softmax = Tensor.softmax

    def recorded(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        shapes.append(self.shape)
        return softmax(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "softmax", recorded)
    module = core(EVEN, identity=True)
    module.backend = "matmul"
    module(torch.randn(2, TOKENS, 24))
    assert [shape.numel() for shape in shapes] == [2 * 2 * TOKENS * TOKENS]  # of two images two kept heads of four


def test_parent_and_children_share_one_dropout_mask() -> None:
    """With equal values, a child drops what its parent drops."""
    module = core(HeadLayout((0,), ((1,),)))
    module.alpha = None
    module.backend, module.attn_drop.p = "matmul", 0.5
    with torch.no_grad():
        for parameter in fused(module).parameters():
            parameter[17:] = parameter[10:17]
    module.train()
    inputs = module.inputs(torch.randn(2, TOKENS, 24))
    q, k, v = module.project(inputs)
    own, child = module.mix(q, k, v, inputs).chunk(2, dim=-1)
    assert torch.equal(own, child)
    assert not torch.equal(own, module.mix(q, k, v, inputs)[..., :7])


def test_fuse_folds_alpha_and_drops_zero_paths() -> None:
    module, x = core(EVEN, identity=True, mean=True, conv=True), torch.randn(2, TOKENS, 24)
    assert module.gamma is not None
    with torch.no_grad():
        module.gamma.zero_()
    wanted = module(x)
    module.fuse()
    assert module.alpha is None
    assert module.paths == {"identity": True, "mean": False, "conv": True}
    torch.testing.assert_close(module(x), wanted, rtol=1e-4, atol=1e-5)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    module.fuse()
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("options", [{"filter_rank": 1}, {"conv": True}])
def test_non_square_grid_needs_to_be_known(options: dict[str, Any]) -> None:
    module = core(EVEN, **options)
    assert module(torch.randn(1, PREFIX + 16, 24)).shape[1] == PREFIX + 16  # another size, square
    with pytest.raises(UsageError, match="token grid"):
        module(torch.randn(1, PREFIX + 7, 24))


def test_matmul_equals_torch() -> None:
    q, k, v = torch.randn(2, 3, 6, 4), torch.randn(2, 3, 6, 4), torch.randn(2, 3, 6, 8)
    wanted = F.scaled_dot_product_attention(q, k, v)
    for run in BACKENDS.values():
        torch.testing.assert_close(run(q, k, v, scale=0.5, mask=None, causal=False, dropout=0.0), wanted)
