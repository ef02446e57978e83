"""The support matrix: every attention class of timm, supported or left alone and why."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import timm.layers
import timm.models
from torch import nn

from vitcompact.models.attention_classes import NAMED_ATTENTION, attention_table, class_name
from vitcompact.models.base import AttentionFamily
from vitcompact.models.registry import FAMILIES

COMPUTES_ATTENTION = re.compile(
    r"softmax\(|Softmax\(|scaled_dot_product_attention\(|MultiheadAttention\(|multi_head_attention_forward\("
    r"|\bq\w* @ |@ k\w*\b|@ v\b"
)


@dataclass(frozen=True)
class FamilyRow:
    """One row of the matrix.

    Attributes:
        attention: module and name of the class, without `timm.` and `models.` in front.
        models: number of timm's registered models with at least one module of exactly this class.
        supported: whether a family compacts its heads.
        reason: how it is supported, or why it is left alone.
    """

    attention: str
    models: int
    supported: bool
    reason: str

    def to_json(self) -> dict[str, str | int | bool]:
        """The row as the `families` verb prints it."""
        return asdict(self)


def support_matrix(families: Sequence[AttentionFamily] = FAMILIES) -> list[FamilyRow]:
    """Every attention class of the stored table, most widely used first.

    Counts come from the table; what is supported comes from `families`.
    """
    adapters = {class_name(family.attention): family.name for family in families}
    rows = []
    for name, entry in attention_table().attention.items():
        adapter = adapters.get(name)
        reason = entry.reason if adapter is None else f"heads are hallucinated (family {adapter})"
        rows.append(FamilyRow(name, entry.models, adapter is not None, reason))
    return sorted(rows, key=lambda row: (-row.models, not row.supported, row.attention))


def to_markdown(rows: Sequence[FamilyRow]) -> str:
    """The matrix as a markdown table."""
    lines = ["| attention class | models | supported | how, or why not |", "|---|---:|---|---|"]
    for row in rows:
        lines.append(f"| `{row.attention}` | {row.models} | {'yes' if row.supported else 'no'} | {row.reason} |")
    return "\n".join(lines) + "\n"


def unclassified() -> list[str]:
    """Classes of the installed timm that look like attention and are missing from the table.

    A class looks like attention by its name or by what its source calls. Nothing is built, so this takes a second.
    """
    table = attention_table()
    known = table.attention.keys() | table.not_attention.keys()
    modules = [
        info.name
        for package in (timm.layers, timm.models)
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        if not info.ispkg
    ]
    return sorted({name for module in modules for name in attention_like(module)} - known)


def attention_like(module: str) -> Iterator[str]:
    """Names, as the table has them, of the classes of one module of timm that look like attention."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return
    source = Path(spec.origin).read_text(encoding="utf-8")
    if not (NAMED_ATTENTION.search(source) or COMPUTES_ATTENTION.search(source)):
        return
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        body = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        if NAMED_ATTENTION.search(node.name) or COMPUTES_ATTENTION.search(body):
            cls = getattr(importlib.import_module(module), node.name)
            if issubclass(cls, nn.Module):
                yield class_name(cls)
