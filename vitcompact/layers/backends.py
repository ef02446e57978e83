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

from vitcompact.layers.masks import masked_logits

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
    if torch.compiler.is_compiling() or q.shape[:2] != k.shape[:2]:  # compilers want it in plain terms
        return F.dropout(maps(q, k, scale=scale, mask=mask, causal=causal), dropout) @ v
    batch, heads, queries, _ = q.shape
    q, k, v = (t.flatten(0, 1) for t in (q, k.transpose(-2, -1), v))
    scores = torch.baddbmm(q.new_zeros(1), q, k, beta=0, alpha=scale)
    if causal or mask is not None:
        scores = masked_logits(scores.unflatten(0, (batch, heads)), mask, causal).flatten(0, 1)
    found = _softmax(scores)
    found = F.dropout(found, dropout) if dropout else found
    return (found @ v).view(batch, heads, queries, -1)


def chunked(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Tensor | None, causal: bool, dropout: float
) -> Tensor:
    """The same for some queries of an image at a time, so that what is worked on stays in the cache and is not copied.

    What it has no form for (`_divisible`) is `matmul`'s.
    """
    if not _divisible(q, k, v, mask, causal, dropout):
        return matmul(q, k, v, scale=scale, mask=mask, causal=causal, dropout=dropout)
    batch, heads, queries, _ = q.shape
    rows = -(-queries // max(1, round(queries / CHUNK_ROWS)))
    together = min(heads, max(1, CHUNK_ENTRIES // (rows * k.shape[2])))
    out, room = v.new_empty(batch, queries, heads, v.shape[-1]), q.new_empty(together, rows, k.shape[2])
    for image in range(batch):
        for first in range(0, heads, together):
            some = slice(first, first + together)
            scaled, keys, values = q[image, some] * scale, k[image, some].transpose(1, 2), v[image, some]
            for row in range(0, queries, rows):
                part = scaled[:, row : row + rows]
                scores = torch.bmm(part, keys, out=room[: len(part), : part.shape[1]])
                outs = out[image, row : row + rows, some].transpose(0, 1)
                torch.bmm(torch.softmax(scores, dim=-1, out=scores), values, out=outs)
    return out.transpose(1, 2)


def _softmax(scores: Tensor) -> Tensor:
    """The softmax over keys, in place where it is large, on the CPU and without gradients: new memory costs as much."""
    small = scores.device.type != "cpu" or scores.numel() < IN_PLACE
    if small or scores.requires_grad or torch.is_autocast_enabled("cpu"):
        return scores.softmax(dim=-1)
    return torch.softmax(scores, dim=-1, out=scores)


def _divisible(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, dropout: float) -> bool:
    """Whether a call can be done in chunks: no mask, no dropout, no gradients, nothing that compilers should see."""
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
    seen = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    return not (causal or mask is not None or dropout or wanted or seen) and q.shape[:2] == k.shape[:2]


def maps(q: Tensor, k: Tensor, *, scale: float, mask: Tensor | None, causal: bool) -> Tensor:
    """The softmax maps `(batch, heads, queries, keys)` themselves."""
    return masked_logits((q * scale) @ k.transpose(-2, -1), mask, causal).softmax(dim=-1)


BACKENDS: dict[str, Attend] = {"sdpa": sdpa, "padded": padded, "matmul": matmul, "chunked": chunked}


def choose(q: Tensor, k: Tensor, v: Tensor, masked: bool, divisible: bool) -> str:
    """The backend expected to be fastest for tensors like these, as `benchmarks/attention_backends.py` measures it.

    Equal widths always take the fused call, and so does everything outside the CPU, where its kernels take a wider V as
    it is. On the CPU they fall to a slow path, for which padding makes up where there is a mask, which it need not add,
    or many keys. Where V is so wide that a map serves several heads, plain products win: of all maps together while
    those are small, and in chunks above, but for the fused call of half precision where that has matrix units (AMX).
    What compilers see does not hang on the batch, since they make one program for all of them.

    Args:
        masked: whether there is a mask or a bias.
        divisible: whether the call can be done in chunks.
    """
    if q.shape[-1] == v.shape[-1] or q.device.type != "cpu":
        return "sdpa"
    if masked:
        return "padded"
    keys, wide = k.shape[-2], 2 * v.shape[-1] >= 3 * q.shape[-1]
    half = q.dtype in (torch.bfloat16, torch.float16)
    if half and not MATRIX_UNITS:
        short, long = (LONG_SEQUENCE, "chunked") if wide and divisible else (LONG_SEQUENCE_HALF, "padded")
        return "matmul" if keys <= short else long
    few = half and not torch.compiler.is_compiling() and q.shape[:2].numel() <= FEW_MAPS
    if not wide:
        return "matmul" if keys <= FEW_KEYS and not few else "padded"
    if divisible and not half:
        return "matmul" if keys <= FEW_KEYS or _entries(q, k) <= CHUNK_ENTRIES else "chunked"
    return "padded" if keys > LONG_SEQUENCE or (few and _entries(q, k) <= FEW_ENTRIES) else "matmul"


def _entries(q: Tensor, k: Tensor) -> int:
    """Numbers in the maps of all images."""
    return q.shape[:-1].numel() * k.shape[-2]


def attend(
    backend: str, q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Tensor | None, causal: bool, dropout: float
) -> Tensor:
    """The backend of that name, the one that `choose` names for `"auto"`."""
    divisible = _divisible(q, k, v, mask, causal, dropout)
    name = choose(q, k, v, mask is not None, divisible) if backend == "auto" else backend
    return BACKENDS[name](q, k, v, scale=scale, mask=mask, causal=causal, dropout=dropout)


MATRIX_UNITS = bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())
"""Whether this CPU multiplies matrices of half precision in units of their own (AMX)."""
LONG_SEQUENCE = 480
"""Keys above which padding beats whole maps of several heads: they cross between 401 and 577."""
LONG_SEQUENCE_HALF = 2048
"""The same in half precision without matrix units, where whole maps are faster at every length tried; a bound of
their memory."""
FEW_KEYS = 128
"""Keys up to which whole maps of all images beat what is better with 197: padding, or chunks under a wide V."""
FEW_MAPS, FEW_ENTRIES = 8, 2**18
"""Maps of all images, and their entries, up to which matrix units are not worth what they cost to set up: those of one
image."""
IN_PLACE = 2**18
"""Entries of maps above which a softmax in place is faster."""
CHUNK_ROWS = 192
"""Queries of a chunk, about: chunks are even."""
CHUNK_ENTRIES = 200_000
"""Entries of all maps of a chunk, for a cache of a megabyte or two."""
