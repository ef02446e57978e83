"""Every attention class of timm: what kind of attention it is, and how many registered models carry it.

The table is `attention_classes.json`. Kinds and notes in it were decided by reading timm's source; the counts are
written by `benchmarks/attention_census.py`. The rule:

- An attention class weighs positions (or channels) by the data in its own forward, or is called attention.
- A block or window wrapper that leaves the weighing to a child in the table is not one; `not_attention` says so.
- Gates of convolutional networks count only where timm calls them attention; squeeze-and-excitation, ECA and
  gather-excite modules, state-space mixers and focal modulation do not.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from torch import nn

TABLE = "attention_classes.json"
NAMED_ATTENTION = re.compile(r"Att(?:ention|n)|MHSA|XCA")
"""What timm calls its attention classes."""

REASONS: dict[str, str] = {
    "softmax": "not supported yet",
    "talking-heads": "mixes heads before the softmax: no map belongs to one head",
    "channel": "channel attention: no token-by-token map",
    "class-query": "class attention: the class token is the only query",
    "pooling": "attention pooling, no trunk layer",
    "linear": "linear or factorised attention has no token-by-token softmax map",
    "one-head": "one head: no other to be hallucinated from",
    "cascaded": "cascaded heads: each reads the output of the one before",
    "predicted": "weights are predicted without keys: no query-key map to save",
    "gate": "gate on a convolutional feature map: no tokens",
    "convolution": "a grouped convolution in spite of its name: no map",
}
"""Why a kind of attention is left alone. `softmax` alone has a map for each head that a family could take over."""


@dataclass(frozen=True)
class AttentionClass:
    """One attention class of timm.

    Attributes:
        kind: a key of `REASONS`.
        note: what sets the class apart from others of its kind; may be empty.
        models: number of timm's registered models with at least one module of exactly this class.
    """

    kind: str
    note: str
    models: int

    @property
    def reason(self) -> str:
        """Why the class is left alone while no family supports it."""
        return f"{REASONS[self.kind]} ({self.note})" if self.note else REASONS[self.kind]


@dataclass(frozen=True)
class AttentionTable:
    """The stored census of one timm release.

    Attributes:
        timm: the release that the counts come from.
        models: number of its registered models.
        with_attention: how many of them carry at least one class of `attention`.
        with_softmax: how many carry at least one class of kind `softmax`.
        attention: the classes by `class_name`.
        not_attention: classes that look like attention and are not, with the reason.
    """

    timm: str
    models: int
    with_attention: int
    with_softmax: int
    attention: dict[str, AttentionClass]
    not_attention: dict[str, str]


def class_name(cls: type[nn.Module]) -> str:
    """Module and name of a class as the table has it: `timm.models.` or else `timm.` in front is dropped."""
    return f"{cls.__module__}.{cls.__qualname__}".removeprefix("timm.").removeprefix("models.")


@cache
def attention_table() -> AttentionTable:
    """The stored table."""
    stored = json.loads(files(__package__).joinpath(TABLE).read_text(encoding="utf-8"))
    stored["attention"] = {name: AttentionClass(**row) for name, row in stored["attention"].items()}
    return AttentionTable(**stored)


def attention_class(module: nn.Module) -> AttentionClass | None:
    """The table's entry for the class of a module, or None where that is no attention class of timm."""
    return attention_table().attention.get(class_name(type(module)))


def is_unclassified(module: nn.Module) -> bool:
    """Whether a class of timm is named like attention and missing from the table: one of a newer release."""
    cls, table = type(module), attention_table()
    named = cls.__module__.startswith("timm.") and NAMED_ATTENTION.search(cls.__name__) is not None
    return named and class_name(cls) not in {*table.attention, *table.not_attention}
