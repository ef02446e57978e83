"""Where timm's attention classes keep their projections: arguments of `AttentionParts` by pattern."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Rows = tuple[Tensor, Tensor | None]


def rows_of(layer: nn.Module) -> Rows:
    """Weight `(out, in)` and bias of a linear layer or a 1x1 convolution."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    return layer.weight.flatten(1), layer.bias


def around(module: Any) -> dict[str, Any]:
    """What timm calls by the same names nearly everywhere: heads, scale, dropout and output projection.

    Cosine attention has no scale of its own.
    """
    weight, bias = rows_of(module.proj)
    return {
        "num_heads": int(module.num_heads),
        "scale": float(getattr(module, "scale", 1.0)),
        "proj_weight": weight,
        "proj_bias": bias,
        "training": bool(module.training),
        "attention_dropout": float(module.attn_drop.p),
        "output_dropout": module.proj_drop,
    }


def named(query: Rows, key: Rows, value: Rows) -> dict[str, Any]:
    """The three projections by the names of `AttentionParts`."""
    return {
        "query": query[0],
        "key": key[0],
        "value": value[0],
        "query_bias": query[1],
        "key_bias": key[1],
        "value_bias": value[1],
    }


def fused(layer: nn.Module) -> dict[str, Any]:
    """One layer whose rows are queries, keys and values, equally many."""
    return named(*_chunks(rows_of(layer), 3))


def query_and_rest(query: nn.Module, rest: nn.Module) -> dict[str, Any]:
    """One layer for the queries, one for keys and values."""
    key, value = _chunks(rows_of(rest), 2)
    return {**named(rows_of(query), key, value), "packing": ("q", "kv")}


def separate(query: nn.Module, key: nn.Module, value: nn.Module) -> dict[str, Any]:
    """Three layers."""
    return {**named(rows_of(query), rows_of(key), rows_of(value)), "packing": ("q", "k", "v")}


def fused_without_key_bias(layer: nn.Module, query_bias: Tensor | None, value_bias: Tensor | None) -> dict[str, Any]:
    """One layer without bias, and biases of queries and values beside it: keys then get a layer of their own."""
    query, key, value = (weight for weight, _ in _chunks(rows_of(layer), 3))
    packing = ("qkv",) if query_bias is None and value_bias is None else ("qv", "k")
    return {**named((query, query_bias), (key, None), (value, value_bias)), "packing": packing}


def _chunks(rows: Rows, count: int) -> list[Rows]:
    weights = torch.chunk(rows[0], count)
    biases = [None] * count if rows[1] is None else list(torch.chunk(rows[1], count))
    return list(zip(weights, biases, strict=True))
