"""Ways to compute `softmax(scale Q K^T + bias) V` when V is wider than Q and K.

One call serves `heads` softmax maps, each applied to `slices` value heads side by side:

    q: (batch, heads, queries, qk_dim)   k: (batch, heads, keys, qk_dim)
    v: (batch, heads, keys, slices * v_dim)   ->   (batch, heads, queries, slices * v_dim)

All backends give the same numbers up to rounding; which is fastest depends on device, dtype and the number of
tokens; `benchmarks/attention_backends.py` measures it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[..., Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Tensor | None, causal: bool, dropout: float) -> Tensor:
    """One fused call; V may be wider than Q and K (CUDA's kernels take it, the CPU's fall back to plain maths)."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale)


def padded(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Tensor | None, causal: bool, dropout: float
) -> Tensor:
    """One fused call with Q, K and V zero-padded to one width, which keeps the CPU's flash kernel."""
    width = max(q.shape[-1], v.shape[-1])
    grow = width - q.shape[-1]
    q, k = (F.pad(q, (0, grow)), F.pad(k, (0, grow))) if grow else (q, k)
    wide = F.pad(v, (0, width - v.shape[-1])) if width > v.shape[-1] else v
    out = sdpa(q, k, wide, scale=scale, mask=mask, causal=causal, dropout=dropout)
    return out[..., : v.shape[-1]]


def matmul(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Tensor | None, causal: bool, dropout: float
) -> Tensor:
    """Two batched products with the kept heads' maps in between (never a hallucinated head's)."""
    return F.dropout(maps(q, k, scale=scale, mask=mask, causal=causal), dropout) @ v


def maps(q: Tensor, k: Tensor, *, scale: float, mask: Tensor | None, causal: bool) -> Tensor:
    """The softmax maps `(batch, heads, queries, keys)` themselves."""
    scores = (q * scale) @ k.transpose(-2, -1)
    if causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~allowed, float("-inf"))
    elif mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(dim=-1)


BACKENDS: dict[str, Attend] = {"sdpa": sdpa, "padded": padded, "matmul": matmul}


def choose(q: Tensor, v: Tensor) -> str:
    """The backend expected to be fastest for tensors like these (lengths measured on one CPU with native bfloat16).

    Equal widths always take the fused call. On the CPU an unequal pair would fall to its slow path, so short
    sequences multiply plainly and long ones pad; other devices take the wider V as it is.
    """
    if q.shape[-1] == v.shape[-1] or q.device.type != "cpu":
        return "sdpa"
    short = q.shape[-2] <= (LONG_SEQUENCE_HALF if q.dtype in (torch.bfloat16, torch.float16) else LONG_SEQUENCE)
    return "matmul" if short else "padded"


def attend_as_fastest(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Tensor | None, causal: bool, dropout: float
) -> Tensor:
    """The backend that `choose` names."""
    return BACKENDS[choose(q, v)](q, k, v, scale=scale, mask=mask, causal=causal, dropout=dropout)


LONG_SEQUENCE = 480
"""Queries above which padding beats plain products in float32: they cross between 401 and 577."""
LONG_SEQUENCE_HALF = 2048
"""The same in half precision, where plain products are faster at every length tried; a bound of their memory."""
