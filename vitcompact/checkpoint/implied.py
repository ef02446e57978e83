"""Which arguments of a timm architecture give a model of the names and shapes that a file has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vitcompact.checkpoint.infer import meta_model
from vitcompact.checkpoint.matching import classifier_names, compare
from vitcompact.checkpoint.sizes import Size, pair, size_of_grid, size_of_masks, sizes_to_try, window_of

_ROUNDS = 5
_FEW = 0.3  # share of tensors that depend on the image size, at most
# Arguments that add or remove parts, by a tensor of the part: (argument, where the file has it, where it has it not).
_PARTS: dict[str, tuple[str, Any, Any]] = {
    "cls_token": ("class_token", True, False),
    "norm_pre.weight": ("pre_norm", True, False),
    "blocks.0.ls1.gamma": ("init_values", 1e-5, 0.0),
    "blocks.0.attn.qkv.bias": ("qkv_bias", True, False),
    "blocks.0.attn.q_norm.weight": ("qk_norm", True, False),
    "attn_pool.latent": ("global_pool", "map", "token"),
}


def implied_args(
    state_dict: Mapping[str, Tensor], name: str, given: Mapping[str, Any], size: Size | None, raw: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Arguments of `timm.create_model(name)` under which its names and shapes are those of `state_dict`.

    Args:
        state_dict: tensors by timm's names.
        name: the architecture.
        given: arguments that are known, and not for the weights to say.
        size: image size (height and width in pixels) that is recorded, which is believed where it fits.
        raw: tensors by the names in the file, where buffers may tell a size.

    Returns:
        The given arguments, and others (`num_classes`, `in_chans`, `img_size`, `patch_size`, `global_pool`…) where the
        weights tell.
    """
    args = dict(given)
    hint = size or size_of_masks(raw)
    for _ in range(_ROUNDS):
        model = _described(name, args)
        found = _parts(state_dict, model, told="global_pool" in given)
        found |= _ends(state_dict, model) | window_of(state_dict, raw, model)
        new = {
            key: value
            for key, value in found.items()
            if key not in given and args.get(key, _default(model, key)) != value
        }
        if not new:
            break
        accepted = _accepted(name, args, new)
        if accepted == args:
            break
        args = accepted
    return _with_size(state_dict, name, args, hint, raw)


def _described(name: str, args: Mapping[str, Any]) -> nn.Module:
    """The architecture; a pooling that needs parts which are not known yet is left for later."""
    try:
        return meta_model(name, **args)
    except Exception:
        return meta_model(name, **{key: value for key, value in args.items() if key != "global_pool"})


def _default(model: nn.Module, key: str) -> Any:
    """What an argument is that was not given, where the model tells."""
    return getattr(model, key, _UNKNOWN) if key in ("num_classes", "in_chans") else _UNKNOWN


_UNKNOWN = object()


def _accepted(name: str, args: dict[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`args` with those of `new` that the architecture takes."""
    for addition in (new, *({key: value} for key, value in new.items())):
        try:
            meta_model(name, **{**args, **addition})
        except Exception:  # an argument that this architecture does not have, or a value that it refuses
            continue
        args = {**args, **addition}
        if addition is new:
            break
    return args


def _parts(state_dict: Mapping[str, Tensor], model: nn.Module, *, told: bool) -> dict[str, Any]:
    """Arguments for parts that either the file or the model lacks."""
    expected = model.state_dict()
    args: dict[str, Any] = {}
    if not any(key in state_dict for key in expected):
        return args
    for key, (argument, there, missing) in _PARTS.items():
        if (key in state_dict) != (key in expected):
            args[argument] = there if key in state_dict else missing
    registers = state_dict.get("reg_token")
    count = 0 if registers is None else registers.shape[1]
    if count != (expected["reg_token"].shape[1] if "reg_token" in expected else 0):
        args["reg_tokens"] = count
    args |= _norm(state_dict, expected, model, told=told)
    table, grid = state_dict.get("pos_embed"), getattr(getattr(model, "patch_embed", None), "num_patches", None)
    if hasattr(model, "no_embed_class") and table is not None and table.ndim == 3 and not args.keys() & {"reg_tokens"}:
        args |= _embedded_prefix(table.shape[1], model, grid, likely=registers is not None)
    return args


def _norm(
    state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor], model: nn.Module, *, told: bool
) -> dict[str, Any]:
    """Where the last normalisation is: before pooling (`norm`) or after it (`fc_norm`).

    After it means an average of patch tokens, but before it leaves open which pooling there is, unless that is `told`.
    """
    before, after = "norm.weight" in state_dict, "fc_norm.weight" in state_dict
    if (before, after) == ("norm.weight" in expected, "fc_norm.weight" in expected) or not (before or after):
        return {}
    if before and after:
        return {"fc_norm": True}
    if type(model).__name__ == "Beit":
        return {"global_pool": "avg" if after else "token"}
    if after and not told:
        return {"global_pool": "avg"}
    return {"fc_norm": after} if told else {}


def _embedded_prefix(length: int, model: nn.Module, num_patches: int | None, *, likely: bool) -> dict[str, Any]:
    """Whether class and register tokens have positions, from the length of the table.

    Where it is that of the model's own grid there is no doubt; that of another square grid may also be the length of an
    oblong one, and tells only where it is `likely` that they have none.
    """
    prefix = int(model.num_prefix_tokens)  # type: ignore[arg-type]
    without, beside = length, length - prefix
    if not prefix or without == beside:
        return {}
    own, other = (without, beside) if model.no_embed_class else (beside, without)
    if own == num_patches or (_is_square(own) and other != num_patches):
        return {}
    return (
        {"no_embed_class": not model.no_embed_class} if other == num_patches or (likely and _is_square(other)) else {}
    )


def _ends(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Any]:
    """Number of classes, of channels, and the size of a patch."""
    cfg: Any = model.pretrained_cfg
    heads = (state_dict.get(f"{path}.weight") for path in classifier_names(cfg))
    args: dict[str, Any] = {"num_classes": next((head.shape[0] for head in heads if head is not None), 0)}
    key = f"{cfg.get('first_conv')}.weight"
    stem, own = state_dict.get(key), model.state_dict().get(key)
    if stem is None or own is None or stem.ndim != 4 or own.ndim != 4:
        return args
    channels = getattr(model, "in_chans", None) or cfg["input_size"][0]
    args["in_chans"] = stem.shape[1] * channels // own.shape[1]
    patch = pair(getattr(getattr(model, "patch_embed", None), "patch_size", None))
    if patch is not None and patch == tuple(own.shape[-2:]) != tuple(stem.shape[-2:]):
        height, width = stem.shape[-2:]
        args["patch_size"] = height if height == width else (height, width)
    return args


def _with_size(
    state_dict: Mapping[str, Tensor], name: str, args: dict[str, Any], hint: Size | None, raw: Mapping[str, Tensor]
) -> dict[str, Any]:
    """`args` with the image size at which all shapes agree: that of the table of positions, or one that is tried."""
    model = meta_model(name, **args)
    cfg: Any = model.pretrained_cfg
    if "img_size" in args or not (cfg.get("fixed_input_size") or _size_of(model)):
        return args
    by_grid = size_of_grid(state_dict, model, hint)
    likely = by_grid or hint
    if likely is not None and likely != _size_of(model):
        sized = {**args, "img_size": likely}
        if (fitting := _mismatches(state_dict, name, sized)) is not None and fitting <= _count(state_dict, model):
            args, model = sized, meta_model(name, **sized)
    if not 0 < _count(state_dict, model) <= _FEW * len(state_dict):
        return args  # everything fits, or this is another architecture
    for size in sizes_to_try(state_dict, model, hint):
        if _mismatches(state_dict, name, {**args, "img_size": size}) == 0:
            return {**args, "img_size": size}
    return args


def _mismatches(state_dict: Mapping[str, Tensor], name: str, args: Mapping[str, Any]) -> int | None:
    try:
        return _count(state_dict, meta_model(name, **args))
    except Exception:  # a size that the architecture refuses
        return None


def _count(state_dict: Mapping[str, Tensor], model: nn.Module) -> int:
    """Tensors of another shape than the model's."""
    return len(compare(state_dict, model.state_dict()).mismatched)


def _size_of(model: nn.Module) -> Size | None:
    return pair(getattr(getattr(model, "patch_embed", None), "img_size", None))


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number
