"""Where timm's attention classes keep their projections: arguments of `AttentionParts` by pattern."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitcompact.layers.pointwise import matrix

Rows = tuple[Tensor, Tensor | None]


def rows_of(layer: nn.Module) -> Rows:
    """Weight `(out, in)` and bias of a linear layer or a 1x1 convolution, a batch norm behind it folded in."""
    return matrix(layer)


def around(module: Any, proj: nn.Module | None = None) -> dict[str, Any]:
    """What timm calls by the same names nearly everywhere: heads, scale, dropout and output projection.

    Cosine attention has no scale of its own; some layers have no dropout.

    Args:
        proj: the output projection, where it is not `module.proj` itself.
    """
    weight, bias = rows_of(proj or module.proj)
    dropout = getattr(module, "attn_drop", None)
    return {
        "num_heads": int(getattr(module, "num_heads", 0) or module.heads),
        "scale": float(getattr(module, "scale", 1.0)),
        "proj_weight": weight,
        "proj_bias": bias,
        "training": bool(module.training),
        "attention_dropout": 0.0 if dropout is None else float(dropout.p),
        "output_dropout": getattr(module, "proj_drop", None) or nn.Identity(),
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


def keys_and_values(layer: nn.Module) -> dict[str, Any]:
    """One layer for keys and values; the queries are channels of what the layer is handed."""
    key, value = _chunks(rows_of(layer), 2)
    return {**named((torch.eye(len(key[0])).to(key[0]), None), key, value), "packing": ("kv",)}


def query_key_and_value(query_and_key: nn.Module, value: nn.Module) -> dict[str, Any]:
    """One layer for queries and keys, one for the values."""
    query, key = _chunks(rows_of(query_and_key), 2)
    return {**named(query, key, rows_of(value)), "packing": ("qk", "v")}


def separate(query: nn.Module, key: nn.Module, value: nn.Module) -> dict[str, Any]:
    """Three layers."""
    return {**named(rows_of(query), rows_of(key), rows_of(value)), "packing": ("q", "k", "v")}


def fused_without_key_bias(layer: nn.Module, query_bias: Tensor | None, value_bias: Tensor | None) -> dict[str, Any]:
    """One layer without bias, and biases of queries and values beside it: keys then get a layer of their own."""
    query, key, value = (weight for weight, _ in _chunks(rows_of(layer), 3))
    packing = ("qkv",) if query_bias is None and value_bias is None else ("qv", "k")
    return {**named((query, query_bias), (key, None), (value, value_bias)), "packing": packing}


def by_head(layer: nn.Module, num_heads: int, qk_dim: int) -> dict[str, Any]:
    """One layer whose rows are, head after head, that head's queries, keys and values; values take what is left."""
    query, key, value = _of_each_head(rows_of(layer), num_heads, (qk_dim, qk_dim))
    return named(query, key, value)


def query_and_rest_by_head(query: nn.Module, rest: nn.Module, num_heads: int, qk_dim: int) -> dict[str, Any]:
    """One layer for the queries, one whose rows are, head after head, that head's keys and values."""
    key, value = _of_each_head(rows_of(rest), num_heads, (qk_dim,))
    return {**named(rows_of(query), key, value), "packing": ("q", "kv")}


def _of_each_head(rows: Rows, num_heads: int, first: tuple[int, ...]) -> list[Rows]:
    weight, bias = (None if t is None else t.unflatten(0, (num_heads, -1)) for t in rows)
    assert weight is not None
    widths = [*first, weight.shape[1] - sum(first)]
    weights = [part.flatten(0, 1) for part in weight.split(widths, dim=1)]
    biases = [None] * len(widths) if bias is None else [part.flatten() for part in bias.split(widths, dim=1)]
    return list(zip(weights, biases, strict=True))


def _chunks(rows: Rows, count: int) -> list[Rows]:
    weights = torch.chunk(rows[0], count)
    biases = [None] * count if rows[1] is None else list(torch.chunk(rows[1], count))
    return list(zip(weights, biases, strict=True))
