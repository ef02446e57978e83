"""timm model names: known ones, and what was probably meant by the others."""

from __future__ import annotations

import difflib

import timm
from timm.models import get_arch_pretrained_cfgs, split_model_name_tag

from vitcompact.errors import UsageError

ENTRYPOINT = "vitcompact"  # our own entry in timm's registry, which is no architecture by itself


def architectures() -> list[str]:
    """Names of timm's architectures, without tags and without our own entry."""
    return [name for name in timm.list_models() if name != ENTRYPOINT]


def require_known(name: str) -> str:
    """Check a timm model name, with or without a tag, and return its architecture.

    Raises:
        UsageError: no such architecture or no such tag; close matches are listed.
    """
    architecture, tag = split_model_name_tag(name)
    if not timm.is_model(architecture) or architecture == ENTRYPOINT:
        raise UsageError(f"unknown timm model {name!r}{_did_you_mean(architecture, tag)}")
    known = get_arch_pretrained_cfgs(architecture)
    if tag and known and name not in known:
        tagged = sorted(known)
        close = difflib.get_close_matches(name, tagged, n=5, cutoff=0.0)
        raise UsageError(f"unknown pretrained tag {tag!r} of {architecture}; known: {', '.join(close or tagged[:5])}")
    return architecture


def _did_you_mean(architecture: str, tag: str) -> str:
    pool = [*architectures(), *(timm.list_pretrained() if tag else ())]
    name = f"{architecture}.{tag}" if tag else architecture
    close = difflib.get_close_matches(name, pool, n=5, cutoff=0.6)
    close = close or difflib.get_close_matches(architecture, pool, n=5, cutoff=0.6)
    if close:
        return f"; did you mean {', '.join(close)}?"
    return "; timm.list_models() lists the names, a path or a local-dir:DIR is a checkpoint on disk"
