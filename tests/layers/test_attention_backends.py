"""Every way to compute attention under a wide V, against the definition in float64, and which one is chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vitcompact.layers import backends
from vitcompact.layers.backends import BACKENDS, attend, choose

SCALE = 0.3


def tensors(tokens: int, widths: tuple[int, int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Q, K and V of 2 images and 3 maps as layers hand them over: parts of one tensor, heads behind tokens."""
    torch.manual_seed(0)
    packed = torch.randn(2, tokens, 3 * (2 * widths[0] + widths[1])).to(dtype)
    parts = packed.split([3 * width for width in (widths[0], *widths)], dim=-1)
    q, k, v = (part.unflatten(-1, (3, -1)).transpose(1, 2) for part in parts)
    return q, k, v


def defined(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    q, k, v = q.double(), k.double(), v.double()
    logits = SCALE * q @ k.transpose(-2, -1)
    if causal:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask.double()
    return logits.softmax(dim=-1) @ v


def masks(tokens: int) -> dict[str, dict[str, Any]]:
    allowed = (torch.rand(2, 1, tokens, tokens) > 0.4) | torch.eye(tokens, dtype=torch.bool)
    return {
        "none": {"mask": None, "causal": False},
        "causal": {"mask": None, "causal": True},
        "boolean": {"mask": allowed, "causal": False},
        "additive": {"mask": torch.randn(1, 3, tokens, tokens), "causal": False},
    }


@pytest.mark.parametrize("kind", ["none", "causal", "boolean", "additive"])
@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize(
    ("tokens", "widths"), [(3, (4, 8)), (129, (8, 8)), (300, (8, 24)), (530, (8, 16)), (530, (8, 6))]
)
def test_equals_the_definition(tokens: int, widths: tuple[int, int], backend: str, kind: str) -> None:
    q, k, v = tensors(tokens, widths)
    before, how = [t.clone() for t in (q, k, v)], masks(tokens)[kind]
    wanted = defined(q, k, v, **how)
    with torch.inference_mode():
        found = attend(backend, q, k, v, scale=SCALE, dropout=0.0, **how)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(t, old) for t, old in zip((q, k, v), before, strict=True))


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("tokens", [37, 600])
def test_bfloat16(backend: str, tokens: int) -> None:
    q, k, v = tensors(tokens, (16, 32), torch.bfloat16)
    with torch.inference_mode():
        found = attend(backend, q, k, v, scale=SCALE, mask=None, causal=False, dropout=0.0)
    assert found.dtype == torch.bfloat16
    wanted = defined(q, k, v, None, False)
    assert float((found.double() - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_gradients_are_those_of_the_definition(backend: str) -> None:
    found: list[list[Tensor]] = []
    ways: list[Callable[..., Tensor]] = [
        lambda q, k, v: defined(q, k, v, None, False),
        lambda q, k, v: attend(backend, q, k, v, **plain()),
    ]
    for run in ways:
        given = [t.detach().clone().requires_grad_() for t in tensors(300, (8, 16))]
        run(*given).square().sum().backward()
        found.append([t.grad for t in given if t.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)


def plain() -> dict[str, Any]:
    return {"scale": SCALE, "mask": None, "causal": False, "dropout": 0.0}


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_autocast(backend: str) -> None:
    q, k, v = tensors(600, (8, 16))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = attend(backend, q, k, v, **plain())
    wanted = defined(q, k, v, None, False)
    assert float((found.double() - wanted).norm() / wanted.norm()) < 0.02


def test_chunks_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more of the maps than a cache holds are there at a time, and never those of more queries than a chunk has."""
    sizes: list[torch.Size] = []
    softmax = torch.softmax

    def recorded(scores: Tensor, **how: Any) -> Tensor:
        sizes.append(scores.shape)
        return softmax(scores, **how)

    monkeypatch.setattr(torch, "softmax", recorded)
    most = 1.5 * backends.CHUNK_ROWS
    with torch.inference_mode():
        for tokens in (40, 300, 1200):
            attend("chunked", *tensors(tokens, (4, 8)), **plain())
    assert all(size.numel() <= max(backends.CHUNK_ENTRIES, most * size[-1]) and size[1] <= most for size in sizes)
    assert max(size[0] for size in sizes if size[-1] == 40) > 1  # small maps go together
    assert sum(size[0] * size[1] for size in sizes if size[-1] == 1200) == 2 * 3 * 1200


FULL, HALF = torch.float32, torch.bfloat16


@pytest.mark.parametrize(
    ("batch", "queries", "keys", "widths", "dtype", "units", "wanted"),
    [
        (1, 4000, 4000, (64, 64), FULL, True, "sdpa"),
        (1, 197, 197, (64, 128), FULL, True, "matmul"),
        (4, 197, 197, (64, 128), FULL, True, "chunked"),
        (16, 257, 257, (64, 128), FULL, True, "chunked"),
        (4, 577, 577, (64, 128), FULL, False, "chunked"),
        (16, 784, 49, (64, 128), FULL, True, "matmul"),
        (8, 37, 37, (64, 48), FULL, True, "matmul"),
        (1, 197, 197, (64, 48), FULL, True, "padded"),
        (8, 401, 401, (64, 128), HALF, True, "matmul"),
        (1, 37, 37, (64, 128), HALF, True, "padded"),
        (16, 37, 37, (64, 128), HALF, True, "matmul"),
        (1, 1025, 1025, (64, 128), HALF, True, "padded"),
        (8, 197, 197, (64, 48), HALF, True, "padded"),
        (1, 65, 65, (40, 48), HALF, True, "padded"),
        (8, 65, 65, (40, 48), HALF, True, "matmul"),
        (1, 1025, 1025, (64, 128), HALF, False, "chunked"),
        (1, 1025, 1025, (64, 48), HALF, False, "matmul"),
    ],
)
def test_choice(
    batch: int,
    queries: int,
    keys: int,
    widths: tuple[int, int],
    dtype: torch.dtype,
    units: bool,
    wanted: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "MATRIX_UNITS", units)
    shapes = [(batch, 3, queries, widths[0]), (batch, 3, keys, widths[0]), (batch, 3, keys, widths[1])]
    q, k, v = (torch.empty(shape, dtype=dtype, device="meta") for shape in shapes)
    assert choose(q, k, v, False, True) == "sdpa"
    q, k, v = (torch.empty(shape, dtype=dtype) for shape in shapes)
    assert choose(q, k, v, False, True) == wanted
    assert choose(q, k, v, True, False) == ("sdpa" if wanted == "sdpa" else "padded")
    if wanted == "chunked":
        assert choose(q, k, v, False, False) in ("matmul", "padded")
