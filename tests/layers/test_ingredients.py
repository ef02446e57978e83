"""Each ingredient of the attention core against maps that are built entry by entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcompact.errors import UsageError
from vitcompact.layers.attention import CompactAttention, HeadLayout
from vitcompact.layers.branches import TokenBatchNorm
from vitcompact.layers.calls import FeatureMapCall, GridCall, RotaryCall, SharedBiasCall, WindowedCall, WindowingCall
from vitcompact.layers.position import ContinuousBias, CosineNorm, RelativeBias, Rotary
from vitcompact.layers.reduction import GridReduction, SequenceReduction

LAYOUT = HeadLayout((2, 0), ((1,), (3,)))
"""Heads 2 and 0 keep their maps; 1 takes that of 2, 3 that of 0. Stored order: 2, 1, 0, 3."""
DIM, QK, V = 24, 6, 5


def core(**parts: Any) -> CompactAttention:
    """A core with random values everywhere; per-head parts are made for four heads and cut to the kept two."""
    torch.manual_seed(0)
    for name in ("position_bias", "query_norm"):
        if hasattr(parts.get(name), "keep_heads"):
            parts[name].keep_heads(list(LAYOUT.maps))
    identity = parts.get("reduction") is None
    module = CompactAttention(DIM, LAYOUT, QK, V, alpha=True, mean=True, identity=identity, **parts)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.startswith(("position_bias", "q_norm")):
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return module.eval()


def oracle(
    module: CompactAttention,
    x: Tensor,
    context: Tensor,
    logits: Callable[[int, Tensor, Tensor], Tensor],
    allowed: Tensor | None = None,
) -> Tensor:
    """Head by head with every map built; `logits(original head, q, k)` are those of one kept head."""
    (wq, bq), (wk, bk), (wv, bv) = (module.rows(part) for part in "qkv")
    q, k, v = F.linear(x, wq, bq), F.linear(context, wk, bk), F.linear(context, wv, bv)
    if allowed is None:
        allowed = torch.ones(x.shape[1], context.shape[1], dtype=torch.bool)
    uniform = allowed.float() / allowed.float().sum(-1, keepdim=True)
    assert module.alpha is not None
    assert module.gamma is not None
    heads: list[Tensor] = []
    for index, (head, rest) in enumerate(zip(LAYOUT.maps, LAYOUT.children, strict=True)):
        part = slice(index * QK, (index + 1) * QK)
        scores = logits(head, q[..., part], k[..., part]).masked_fill(~allowed, float("-inf"))
        for position in range(1 + len(rest)):
            columns = slice(len(heads) * V, (len(heads) + 1) * V)
            values = v[..., columns]
            out = scores.softmax(-1) @ values + uniform @ values * module.gamma[columns]
            if module.beta is not None:
                out = out + values * module.beta[columns]
            heads.append(out * (module.alpha[index] if position else 1.0))
    return torch.cat(heads, dim=-1)


def scaled_product(module: CompactAttention) -> Callable[[int, Tensor, Tensor], Tensor]:
    return lambda _, q, k: module.scale * q @ k.transpose(-1, -2)


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packing", [("qkv",), ("q", "kv"), ("q", "k", "v"), ("qv", "k")])
@pytest.mark.parametrize("biases", ["qkv", "qv", ""])
def test_packings(packing: tuple[str, ...], biases: str) -> None:
    module, x = core(packing=packing, biases=biases), torch.randn(2, 9, DIM)
    close(module(x), module.proj(oracle(module, x, x, scaled_product(module))))
    if packing == ("qv", "k"):
        assert [module.rows(part)[1] is not None for part in "qk"] == ["q" in biases, "k" in biases]


def relative_bias() -> RelativeBias:
    """Biases for 3x3 windows, the row of an offset `(dy, dx)` being `5 (dy + 2) + dx + 2`."""
    places = [(y, x) for y in range(3) for x in range(3)]
    index = torch.tensor([[5 * (a - c + 2) + b - d + 2 for c, d in places] for a, b in places])
    return RelativeBias(torch.randn(25, 4), index, (3, 3), lambda *_: (torch.zeros(1), torch.zeros(1)))


def test_relative_bias_keeps_the_rows_of_the_kept_maps() -> None:
    bias = relative_bias()
    table = bias.relative_position_bias_table.detach().clone()
    module, x = core(position_bias=bias), torch.randn(2, 9, DIM)
    assert isinstance(module.position_bias, RelativeBias)
    assert module.position_bias.relative_position_bias_table.shape == (25, 2)

    def logits(head: int, q: Tensor, k: Tensor) -> Tensor:
        added = torch.empty(9, 9)
        for query in range(9):
            for key in range(9):
                dy, dx = query // 3 - key // 3, query % 3 - key % 3
                added[query, key] = table[5 * (dy + 2) + dx + 2, head]
        return module.scale * q @ k.transpose(-1, -2) + added

    close(module(x), module.proj(oracle(module, x, x, logits)))


def test_shared_bias_is_cut_to_the_kept_maps_and_adds_to_the_own_one() -> None:
    shared = torch.randn(4, 9, 9)
    for own in (None, relative_bias()):
        added = shared if own is None else shared + own()
        module, x = core(call=SharedBiasCall(), position_bias=own), torch.randn(2, 9, DIM)

        def logits(head: int, q: Tensor, k: Tensor, added: Tensor = added, scale: float = module.scale) -> Tensor:
            return scale * q @ k.transpose(-1, -2) + added[head]

        close(module(x, shared_rel_pos_bias=shared), module.proj(oracle(module, x, x, logits)))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("per_head", [False, True])
def test_rotary_embedding(half: bool, per_head: bool) -> None:
    module, x = core(call=RotaryCall(), rotary=Rotary(1, half)), torch.randn(2, 9, DIM)
    angles = torch.randn(4, 8, QK // 2) if per_head else torch.randn(1, 8, QK // 2).expand(4, -1, -1)
    wide = torch.cat((angles, angles), -1) if half else angles.repeat_interleave(2, dim=-1)
    rope = torch.cat((wide.sin(), wide.cos()), dim=-1)

    def turn(t: Tensor, head: int) -> Tensor:
        pairs = t[:, 1:].unflatten(-1, (2, -1)).transpose(-1, -2) if half else t[:, 1:].unflatten(-1, (-1, 2))
        turned = torch.view_as_real(
            torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones(()), angles[head])
        )
        turned = turned.transpose(-1, -2) if half else turned
        return torch.cat((t[:, :1], turned.flatten(-2)), dim=1)

    def logits(head: int, q: Tensor, k: Tensor) -> Tensor:
        return module.scale * turn(q, head) @ turn(k, head).transpose(-1, -2)

    close(module(x, rope=rope if per_head else rope[0]), module.proj(oracle(module, x, x, logits)))
    close(module(x), module.proj(oracle(module, x, x, scaled_product(module))))  # blocks may hand over none


def test_keys_reduced_over_the_grid() -> None:
    conv, norm = nn.Conv2d(DIM, DIM, 2, 2), nn.LayerNorm(DIM)
    module = core(packing=("q", "kv"), call=GridCall(), reduction=GridReduction(conv), norm=norm)
    x = torch.randn(2, 24, DIM)
    image = x.transpose(1, 2).reshape(2, DIM, 4, 6)
    context = norm(conv(image).flatten(2).transpose(1, 2))
    assert context.shape == (2, 6, DIM)
    close(module(x, (4, 6)), module.proj(oracle(module, x, context, scaled_product(module))))
    with pytest.raises(UsageError, match="query i to be key i"):
        CompactAttention(DIM, LAYOUT, QK, V, packing=("q", "kv"), reduction=GridReduction(conv), identity=True)
    with pytest.raises(UsageError, match="share a projection"):
        CompactAttention(DIM, LAYOUT, QK, V, reduction=GridReduction(conv))


def test_keys_reduced_along_the_sequence() -> None:
    norm = TokenBatchNorm(DIM)
    parts = {"packing": ("q", "k", "v"), "reduction": SequenceReduction(nn.AvgPool1d(4, 4)), "norm": norm}
    module, x = core(**parts), torch.randn(2, 16, DIM)
    means = torch.stack([x[:, start : start + 4].mean(1) for start in range(0, 16, 4)], dim=1)
    close(module(x), module.proj(oracle(module, x, norm(means), scaled_product(module))))
    with pytest.raises(UsageError, match="keys on a grid"):
        CompactAttention(DIM, LAYOUT, QK, V, filter_rank=1, **parts)  # type: ignore[arg-type]
    assert module.allowed_terms(("identity", "mean")) == ("mean",)
    assert module.allowed_filter(2) == 0


def test_cosine_attention_with_a_temperature_a_head() -> None:
    temperatures = torch.tensor([0.5, 1.0, 2.0, 9.0])[:, None, None]
    parts = {"query_norm": CosineNorm(temperatures.clone(), largest=1.5), "key_norm": CosineNorm(), "scale": 1.0}
    module, x = core(**parts), torch.randn(2, 9, DIM)

    def logits(head: int, q: Tensor, k: Tensor) -> Tensor:
        cosine = F.cosine_similarity(q[:, :, None], k[:, None], dim=-1)
        return cosine * float(temperatures[head].clamp(max=1.5).exp())

    close(module(x), module.proj(oracle(module, x, x, logits)))


def test_continuous_bias_keeps_the_outputs_of_the_kept_maps() -> None:
    mlp, coords = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 4, bias=False)), torch.randn(1, 5, 5, 2)
    index = relative_bias().relative_position_index
    wanted = 16 * mlp(coords).reshape(25, 4)[index].sigmoid()  # (queries, keys, heads)
    module = core(position_bias=ContinuousBias(mlp, coords, index, lambda *_: (coords, index)))
    x = torch.randn(2, 9, DIM)

    def logits(head: int, q: Tensor, k: Tensor) -> Tensor:
        return module.scale * q @ k.transpose(-1, -2) + wanted[..., head]

    close(module(x), module.proj(oracle(module, x, x, logits)))


def test_windows_cut_by_the_block_with_a_mask() -> None:
    """Two images of three windows; timm blocks with -100, which the mean path has to read as not allowed."""
    module, x = core(call=WindowedCall(), position_bias=relative_bias()), torch.randn(6, 9, DIM)
    mask = torch.zeros(3, 9, 9).masked_fill(torch.rand(3, 9, 9) > 0.6, -100.0)
    mask[:, range(9), range(9)] = 0.0
    assert module.position_bias is not None
    bias = module.position_bias()
    wanted = []
    for window in range(6):

        def logits(head: int, q: Tensor, k: Tensor) -> Tensor:
            return module.scale * q @ k.transpose(-1, -2) + bias[LAYOUT.maps.index(head)]

        one = x[window : window + 1]
        wanted.append(oracle(module, one, one, logits, allowed=mask[window % 3] == 0))
    close(module(x, mask=mask), module.proj(torch.cat(wanted)))


def test_windows_cut_by_the_layer() -> None:
    """A 3x5 grid in windows of 2 is padded to 4x6 with zero tokens, which are keys."""
    module, x = core(call=WindowingCall(2)), torch.randn(2, 15, DIM)
    grid = torch.zeros(2, 4, 6, DIM)
    grid[:, :3, :5] = x.reshape(2, 3, 5, DIM)
    out = torch.zeros(2, 4, 6, 4 * V)
    for top in range(0, 4, 2):
        for left in range(0, 6, 2):
            window = grid[:, top : top + 2, left : left + 2].reshape(2, 4, DIM)
            heads = oracle(module, window, window, scaled_product(module))
            out[:, top : top + 2, left : left + 2] = heads.reshape(2, 2, 2, 4 * V)
    close(module(x, (3, 5)), module.proj(out[:, :3, :5].reshape(2, 15, 4 * V)))


def test_feature_maps() -> None:
    module, x = core(call=FeatureMapCall()), torch.randn(2, DIM, 3, 4)
    tokens = x.flatten(2).transpose(1, 2)
    wanted = module.proj(oracle(module, tokens, tokens, scaled_product(module)))
    close(module(x), wanted.transpose(1, 2).reshape(2, DIM, 3, 4))


def test_bias_with_boolean_mask_and_causality() -> None:
    module, x = core(position_bias=relative_bias()), torch.randn(2, 9, DIM)
    assert module.position_bias is not None
    bias = module.position_bias()

    def logits(head: int, q: Tensor, k: Tensor) -> Tensor:
        return module.scale * q @ k.transpose(-1, -2) + bias[LAYOUT.maps.index(head)]

    tril = torch.ones(9, 9, dtype=torch.bool).tril()
    wanted = module.proj(oracle(module, x, x, logits, allowed=tril))
    close(module(x, attn_mask=tril), wanted)
    close(module(x, is_causal=True), wanted)
