"""Checkpoints as Google's JAX code writes them, of a timm model: what timm's own loader reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

Arrays = dict[str, Any]


def kernel(weight: Tensor) -> Any:
    return (weight.permute(2, 3, 1, 0) if weight.ndim == 4 else weight.mT).detach().numpy()


def dense(to: str, layer: nn.Module) -> Arrays:
    assert isinstance(layer.weight, Tensor)
    assert isinstance(layer.bias, Tensor)
    return {f"{to}/kernel": kernel(layer.weight), f"{to}/bias": layer.bias.detach().numpy()}


def norm(to: str, layer: nn.Module) -> Arrays:
    assert isinstance(layer.weight, Tensor)
    assert isinstance(layer.bias, Tensor)
    return {f"{to}/scale": layer.weight.detach().numpy(), f"{to}/bias": layer.bias.detach().numpy()}


def attention(to: str, heads: int, qkv: Sequence[tuple[Tensor, Tensor]], proj: Any) -> Arrays:
    arrays: Arrays = {}
    for name, (weight, bias) in zip(("query", "key", "value"), qkv, strict=True):
        arrays[f"{to}/{name}/kernel"] = kernel(weight).reshape(weight.shape[1], heads, -1)
        arrays[f"{to}/{name}/bias"] = bias.detach().numpy().reshape(heads, -1)
    arrays[f"{to}/out/kernel"] = kernel(proj.weight).reshape(heads, -1, proj.weight.shape[0])
    arrays[f"{to}/out/bias"] = proj.bias.detach().numpy()
    return arrays


def google_layout(model: Any, *, prefix: str = "", big_vision: bool = False, stacked: bool = False) -> Arrays:
    """The arrays of a timm ViT with a class token or a pooling layer."""
    attn, mlp, second = (0, 0, 1) if big_vision else (1, 3, 2)
    arrays = dense("embedding", model.patch_embed.proj) | norm("Transformer/encoder_norm", model.norm)
    arrays["pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"] = (
        model.pos_embed.detach().numpy()
    )
    if model.cls_token is not None:
        arrays["cls"] = model.cls_token.detach().numpy()
    if isinstance(model.head, nn.Linear):
        arrays |= dense("head", model.head)
    blocks = []
    for block in model.blocks:
        weights, biases = block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3)
        own = norm("LayerNorm_0", block.norm1) | norm(f"LayerNorm_{second}", block.norm2)
        own |= dense(f"MlpBlock_{mlp}/Dense_0", block.mlp.fc1) | dense(f"MlpBlock_{mlp}/Dense_1", block.mlp.fc2)
        qkv = list(zip(weights, biases, strict=True))
        own |= attention(f"MultiHeadDotProductAttention_{attn}", block.attn.num_heads, qkv, block.attn.proj)
        blocks.append(own)
    if stacked:
        arrays |= {f"Transformer/encoderblock/{n}": np.stack([own[n] for own in blocks]) for n in blocks[0]}
    else:
        for i, own in enumerate(blocks):
            arrays |= {f"Transformer/encoderblock_{i}/{name}": value for name, value in own.items()}
    if (pool := model.attn_pool) is not None:
        qkv = [(pool.q.weight, pool.q.bias), *zip(pool.kv.weight.chunk(2), pool.kv.bias.chunk(2), strict=True)]
        to = "MAPHead_0/MultiHeadDotProductAttention_0"
        arrays |= attention(to, pool.num_heads, qkv, pool.proj)
        arrays |= norm("MAPHead_0/LayerNorm_0", pool.norm) | {"MAPHead_0/probe": pool.latent.detach().numpy()}
        for r in range(2):
            arrays |= dense(f"MAPHead_0/MlpBlock_0/Dense_{r}", getattr(pool.mlp, f"fc{r + 1}"))
    return {f"{prefix}{name}": value for name, value in arrays.items()}


def write_npz(path: Path, arrays: Arrays, *, compressed: bool = False) -> Path:
    """The archive; numpy adds no suffix to a stream."""
    with path.open("wb") as stream:
        (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return path
