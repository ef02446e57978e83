"""Which timm architectures a state dict without a name could belong to."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Mapping

import timm
from timm.models import get_pretrained_cfg
from torch import Tensor

from vitcompact.checkpoint.convert import prefixes, to_layout
from vitcompact.checkpoint.extras import split_extras
from vitcompact.checkpoint.infer import meta_model
from vitcompact.checkpoint.matching import classifier_names, compare
from vitcompact.checkpoint.names import architectures

# Names that timm's models give to embedding widths.
_SIZE_WORDS = {
    **{128: "xtiny", 192: "tiny", 224: "small", 256: "small", 320: "medium", 384: "small", 512: "medium"},
    **{640: "medium", 768: "base", 1024: "large", 1152: "so400m", 1280: "huge", 1408: "giant", 1664: "gigantic"},
}
# What differs by arguments of an architecture: image size, pooling.
_MAY_DIFFER = ("pos_embed", *(f"{norm}.{kind}" for norm in ("norm", "fc_norm") for kind in ("weight", "bias")))
_SIMILAR = 0.8  # families with this share of the best family's similarity are tried


def candidates(
    state_dict: Mapping[str, Tensor], recorded: str | None = None, *, seconds: float = 4.0, limit: int = 8
) -> list[str]:
    """Architectures whose names and shapes are those of `state_dict`, likeliest first.

    Numbers of classes and image sizes may differ: they are arguments of an architecture. Models are built without
    memory and only for as long as `seconds`, so a rare one may be left out.

    Args:
        state_dict: tensors by name.
        recorded: a name that the file has for it, which timm does not know: names that begin with it come first.
        seconds: time limit.
        limit: number of names after which the search ends.
    """
    deadline = time.thread_time() + seconds
    state_dict = _of_the_model(state_dict)
    found: list[str] = []
    for name in _by_likelihood(state_dict, deadline):
        if len(found) >= limit or time.thread_time() > deadline:
            break
        if _could_be(state_dict, name):
            found.append(name)
    return sorted(found, key=lambda name: not _resembles(name, recorded)) if recorded else found


def _resembles(name: str, recorded: str) -> bool:
    return name.startswith(recorded)


def _of_the_model(state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Without a prefix that stands before every name of a model."""
    stems = {f"{stem}.weight" for name in architectures() for stem in _stems(name)}
    for prefix in prefixes(state_dict):
        renamed = {name[len(prefix) :]: tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
        if stems & renamed.keys():
            return renamed
    return state_dict


def _stems(name: str) -> tuple[str, ...]:
    cfg = get_pretrained_cfg(name)
    stem = None if cfg is None else cfg.first_conv
    return () if stem is None else (stem,) if isinstance(stem, str) else tuple(stem)


def _by_likelihood(state_dict: Mapping[str, Tensor], deadline: float) -> list[str]:
    """Architectures whose stem and classifier have the file's names, of the families with the most similar names."""
    by_module = defaultdict(list)
    for name in architectures():
        stems = _stems(name)
        if stems and all(f"{stem}.weight" in state_dict for stem in stems):
            by_module[timm.model_entrypoint(name).__module__].append(name)
    patterns = _patterns(state_dict)
    scores: dict[str, float] = {}
    for module, names in by_module.items():
        if time.thread_time() > deadline:
            break
        scores[module] = _similarity(patterns, names)
    best = max(scores.values(), default=0.0)
    likely = [module for module, score in scores.items() if score > _SIMILAR * best]
    order = {name: (_distance(state_dict, name), -scores[m], len(name)) for m in likely for name in by_module[m]}
    return sorted(order, key=order.__getitem__)


def _similarity(patterns: set[str], names: list[str]) -> float:
    """Share of names in common (Jaccard) between the file and the first architecture of a family."""
    try:
        other = _patterns(meta_model(min(names, key=len)).state_dict())
    except Exception:  # an architecture that cannot be built without memory is no candidate
        return 0.0
    return len(patterns & other) / max(len(patterns | other), 1)


def _patterns(state_dict: Mapping[str, Tensor]) -> set[str]:
    return {re.sub(r"\d+", "#", name) for name in state_dict}


def _distance(state_dict: Mapping[str, Tensor], name: str) -> int:
    """0 when patch size and size word in a model's name agree with the weights, more otherwise."""
    stem = state_dict.get("patch_embed.proj.weight")
    if stem is None or stem.ndim != 4:
        return 0
    patch = re.search(r"patch(\d+)", name)
    wrong_patch = patch is not None and int(patch[1]) != stem.shape[-1]
    word = _SIZE_WORDS.get(stem.shape[0])
    return 2 * wrong_patch + (word is not None and f"_{word}" not in name)


def _could_be(state_dict: Mapping[str, Tensor], name: str) -> bool:
    try:
        model = meta_model(name)
    except Exception:
        return False
    cfg = model.pretrained_cfg
    head = [f"{path}.{kind}" for path in classifier_names(cfg) for kind in ("weight", "bias")]  # type: ignore[arg-type]
    layout = to_layout(state_dict, name, model)
    kept, _ = split_extras(layout, model)
    sized = [key for key in kept if key.endswith("relative_position_bias_table")]
    return compare(kept, model.state_dict()).without([*head, *sized, *_MAY_DIFFER]).fits
