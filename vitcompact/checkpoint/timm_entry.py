"""What timm's entrypoint `vitcompact` builds; `timm.create_model("local-dir:DIR", pretrained=True)` comes here.

timm hands an entrypoint nothing but `model_args` of `config.json`, so these carry the name of the original
architecture and the whole plan. A model is built as: timm's skeleton, replay of the plan, strict load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
from timm.models import build_model_with_cfg, get_pretrained_cfg
from torch import Tensor, nn

from vitcompact.checkpoint.claims import check_claim, check_numbers
from vitcompact.checkpoint.hub import fetch_directory
from vitcompact.checkpoint.infer import meta_model
from vitcompact.checkpoint.matching import fill
from vitcompact.checkpoint.names import ENTRYPOINT, require_known
from vitcompact.checkpoint.overrides import Override, apply_overrides, overrides_from_json
from vitcompact.checkpoint.quiet import quiet_timm, timm_errors
from vitcompact.checkpoint.read import read_weights, weights_file_of
from vitcompact.errors import CheckpointError, UsageError
from vitcompact.operators.replay import replay
from vitcompact.plans.schema import Plan

# Arguments of timm.create_model itself: in a checkpoint's model_args they would point the loader at other files.
_FORBIDDEN = ("checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit", "pruned")


def build(
    pretrained: bool = False,
    *,
    base: str | None = None,
    base_args: Mapping[str, Any] | None = None,
    plan: Mapping[str, Any] | Plan | None = None,
    overrides: Sequence[Mapping[str, Any]] | None = None,
    pretrained_cfg: Mapping[str, Any] | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    pretrained_model_args: Mapping[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A timm model with a plan applied to it; `timm.create_model` calls it through `vitcompact.timm_hook`.

    Args:
        pretrained: load the weights that `pretrained_cfg` points at.
        base: timm name of the original architecture.
        base_args: arguments of that architecture; those in `kwargs` win.
        plan: the plan, as JSON or as an object; None for an empty one.
        overrides: settings that no argument of `base` can say, such as the eps of its norms, as JSON.
        pretrained_cfg: timm's description of the checkpoint; by default that of `base`.
        pretrained_cfg_overlay: replaces entries of it.
        pretrained_model_args: the arguments that the checkpoint was saved with (set by timm).
        cache_dir: where the hub client keeps its files.
        **kwargs: arguments of `base`, such as `num_classes`, `img_size`, `drop_rate`; `features_only` and
            `out_indices` work as for `base`.

    Raises:
        UsageError: no weights to load.
        CheckpointError: `base` or `plan` is not acceptable, or the weights are not those of the planned model.
    """
    name = _check_base(base)
    checked_plan = _check_plan(plan)
    args = _check_args({**(base_args or {}), **kwargs})
    cfg = _describe(name, pretrained_cfg, pretrained_cfg_overlay)
    weights = partial(_read, dict(cfg), cache_dir) if pretrained else None
    cfg.pop("state_dict", None)
    skeleton = partial(
        _build,
        base=name,
        plan=checked_plan,
        overrides=overrides_from_json(overrides),
        cfg=cfg,
        source_args=pretrained_model_args,
        weights=weights,
    )
    feature_cfg = _feature_cfg(name) if args.get("features_only") else None
    with timm_errors(CheckpointError, f"{ENTRYPOINT} model of {name} cannot be built"):
        model: nn.Module = build_model_with_cfg(
            skeleton,
            ENTRYPOINT,
            False,
            pretrained_cfg=cfg,
            pretrained_model_args=dict(pretrained_model_args or {}),
            feature_cfg=feature_cfg,
            **args,
        )
    return model


def _build(
    *,
    base: str,
    plan: Plan,
    overrides: tuple[Override, ...],
    cfg: dict[str, Any],
    source_args: Mapping[str, Any] | None,
    weights: Callable[[], Mapping[str, Tensor]] | None,
    **kwargs: Any,
) -> nn.Module:
    """Skeleton, replay, strict load. `timm.build_model_with_cfg` calls this as the model's class."""
    state_dict = weights() if weights is not None else None
    check_numbers(kwargs, "config.json")
    if state_dict is not None:
        check_claim(lambda: _replay(meta_model(base, **kwargs), plan), state_dict, "config.json")
    with quiet_timm():
        model = timm.create_model(
            base, pretrained=False, pretrained_cfg=cfg, pretrained_model_args=dict(source_args or {}), **kwargs
        )
    model = _replay(model, plan)
    apply_overrides(model, overrides)
    if state_dict is not None:
        fill(model, state_dict, base=base, label=f"the {ENTRYPOINT} checkpoint")
    return model


def _replay(model: nn.Module, plan: Plan) -> nn.Module:
    try:
        return replay(model, plan)
    except UsageError as error:
        raise CheckpointError(f"plan of a {ENTRYPOINT} model: {error}") from error


def _describe(base: str, cfg: Mapping[str, Any] | None, overlay: Mapping[str, Any] | None) -> dict[str, Any]:
    """The pretrained_cfg of the model: what was given, else that of `base` without its weights."""
    if isinstance(cfg, Mapping):
        described = dict(cfg)
    else:
        registered = get_pretrained_cfg(base)
        described = registered.to_dict(remove_source=True) if registered is not None else {}
        described.pop("license", None)  # of weights that are not loaded here
    return {**described, **(overlay or {}), "architecture": ENTRYPOINT, "custom_load": False}


def _read(cfg: Mapping[str, Any], cache_dir: str | Path | None) -> Mapping[str, Tensor]:
    """The weights that a pretrained_cfg points at, in timm's order of precedence."""
    if cfg.get("source") == "hf-hub":
        return read_weights(weights_file_of(fetch_directory(str(cfg.get("hf_hub_id")), cache_dir))).state_dict
    state_dict = cfg.get("state_dict")
    if isinstance(state_dict, Mapping) and cfg.get("source") != "local-dir":
        return state_dict
    if cfg.get("file"):
        path = Path(str(cfg["file"]))
        return read_weights(weights_file_of(path) if path.is_dir() else path).state_dict
    raise UsageError(f"{ENTRYPOINT} has no weights of its own: load local-dir:DIR, or build it with pretrained=False")


def _check_base(base: object) -> str:
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{ENTRYPOINT} needs base, the timm name of the original architecture; got {base!r}")
    try:
        return require_known(base)
    except UsageError as error:
        raise CheckpointError(f"base of a {ENTRYPOINT} model: {error}") from error


def _check_plan(plan: Mapping[str, Any] | Plan | None) -> Plan:
    if plan is None:
        return Plan(layers=())
    if isinstance(plan, Plan):
        return plan
    try:
        return Plan.from_json(plan)
    except UsageError as error:
        raise CheckpointError(f"plan of a {ENTRYPOINT} model: {error}") from error


def _check_args(args: dict[str, Any]) -> dict[str, Any]:
    forbidden = [name for name in _FORBIDDEN if args.get(name)]
    if forbidden:
        raise CheckpointError(f"model_args of a {ENTRYPOINT} model may not hold {', '.join(forbidden)}")
    return args


def _feature_cfg(base: str) -> dict[str, Any]:
    """How timm extracts features from `base`: its wrapper and its default indices, read off a model without memory."""
    with timm_errors(CheckpointError, f"{base} cannot extract features"):
        wrapper: Any = meta_model(base, features_only=True)
    names = wrapper.feature_info.module_name()
    return {
        "feature_cls": type(wrapper),
        "out_indices": tuple(wrapper.feature_info.out_indices),
        "flatten_sequential": any("." in str(name) for name in names),
    }
