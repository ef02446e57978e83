"""Names of tensors: from another library's to timm's, by tables of patterns."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vitcompact.errors import CheckpointError

Rules = Sequence[tuple[str, str]]
"""Pattern of a whole name, and the name in timm; a name `-what it is` leaves the tensor out."""


def renamed(
    tensors: Mapping[str, Tensor], rules: Rules, prefix: str = ""
) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """Tensors under their new names, and the names of those left out by what they are.

    Args:
        tensors: by their names in the other library.
        rules: the first pattern that fits counts.
        prefix: pattern of what may stand before every name.

    Raises:
        CheckpointError: a name that no rule knows.
    """
    compiled = [(re.compile(f"(?:{prefix})?{pattern}"), name) for pattern, name in rules]
    found: dict[str, Tensor] = {}
    left_out: dict[str, list[str]] = defaultdict(list)
    unknown = []
    for name, tensor in tensors.items():
        match, new = next(((m, new) for rule, new in compiled if (m := rule.fullmatch(name))), (None, ""))
        if match is None:
            unknown.append(name)
        elif new.startswith("-"):
            left_out[new[1:]].append(name)
        else:
            found[match.expand(new)] = tensor
    if unknown:
        shown = ", ".join(unknown[:3]) + (", …" if len(unknown) > 3 else "")
        raise CheckpointError(f"{len(unknown)} tensors of the file have no place in this layout ({shown})")
    return found, {what: tuple(names) for what, names in left_out.items()}


def fused(tensors: Mapping[str, Tensor], parts: tuple[str, ...], whole: str) -> dict[str, Tensor]:
    """Linear layers `….query`, `….key`, `….value` one upon the other as `….qkv`; a part without a bias counts as 0.

    Raises:
        CheckpointError: some of the parts are missing.
    """
    groups: dict[tuple[str, str], dict[str, Tensor]] = defaultdict(dict)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        owner, _, kind = name.rpartition(".")
        stem, _, last = owner.rpartition(".")
        if last in parts:
            groups[f"{stem}.{whole}", kind][last] = tensor
        else:
            found[name] = tensor
    for (stem, kind), group in groups.items():
        missing = [part for part in parts if part not in group]
        if missing and kind == "weight":
            raise CheckpointError(f"{', '.join(missing)} of {stem} are missing from the file")
        zero = torch.zeros_like(next(iter(group.values())))
        found[f"{stem}.{kind}"] = torch.cat([group.get(part, zero) for part in parts])
    return found


def outputs(tensors: Mapping[str, Tensor], name: str) -> int:
    """Outputs of a linear layer, 0 where the file does not have it."""
    weight = tensors.get(f"{name}.weight")
    return 0 if weight is None else int(weight.shape[0])
