"""A bare weights file as a model: what was asked for, what is recorded, and what the weights imply, together."""

from __future__ import annotations

import logging
from typing import Any

import timm
from torch import nn

from vitcompact.checkpoint.claims import check_claim, check_numbers
from vitcompact.checkpoint.directory import registered_cfg, size_args
from vitcompact.checkpoint.facts import Facts
from vitcompact.checkpoint.fit import Fitted, fit
from vitcompact.checkpoint.infer import meta_model
from vitcompact.checkpoint.matching import fill
from vitcompact.checkpoint.names import ENTRYPOINT, require_known
from vitcompact.checkpoint.quiet import timm_errors
from vitcompact.checkpoint.read import Weights
from vitcompact.checkpoint.sizes import pair
from vitcompact.data.described import check_described
from vitcompact.errors import UsageError
from vitcompact.options.source import SourceOptions
from vitcompact.utils.plain import to_plain

logger = logging.getLogger("vitcompact")
facts_log = logging.getLogger("vitcompact.facts")


def recorded_name(weights: Weights) -> str | None:
    """The recorded architecture, where timm has it under this name."""
    name = weights.architecture
    if name is None or name == ENTRYPOINT:
        return None
    try:
        require_known(name)
    except UsageError:
        return None
    return name


def build_from(
    name: str, architecture: str, weights: Weights, options: SourceOptions
) -> tuple[nn.Module, Fitted, dict[str, Any]]:
    """The model of a bare file, and with which arguments: those asked for, recorded, or implied by the weights."""
    cfg = registered_cfg(name)
    facts = _facts_for(name, weights)
    check_numbers({**facts.args, **facts.cfg}, str(weights.path))
    check_described(facts.cfg, ", ".join(dict.fromkeys(facts.origins.values())) or str(weights.path))
    given = of_the_file(options)
    with timm_errors(UsageError, f"{name} cannot be built"):
        fitted = fit(weights, name, architecture, given, facts, headless=options.num_classes is not None)
    args = dict(fitted.args)
    channels, *size = cfg.get("input_size", (3, 224, 224))
    found_size = pair(args.get("img_size")) or pair(facts.args.get("img_size")) or (size[0], size[1])
    # What the checkpoint is, as opposed to what the model shall be: timm resamples from the one to the other.
    overlay: dict[str, Any] = {"input_size": (args.get("in_chans", channels), *found_size)}
    overlay |= {key: value for key, value in facts.cfg.items() if key != "label_names"}
    if "num_classes" in args:
        overlay["num_classes"] = args["num_classes"]
        if len(labels := facts.cfg.get("label_names", ())) == args["num_classes"] and labels:
            overlay["label_names"] = labels
    kwargs = {**args, **size_args(cfg, args, found_size), **requested_args(cfg, args, options)}
    overlay.update(kwargs.pop("pretrained_cfg_overlay", {}))
    with timm_errors(UsageError, f"{name} cannot be built as asked"):
        check_claim(lambda: meta_model(name, **kwargs), fitted.state_dict, str(weights.path))
        model: nn.Module = timm.create_model(name, pretrained=False, pretrained_cfg_overlay=overlay, **kwargs)
    fill(model, fitted.state_dict, base=architecture, label=str(weights.path))
    if fitted.left_out:
        logger.warning("%s: left out, since %s has none of it: %s", weights.path, name, fitted.left_out)
    used = {**args, **facts.cfg}
    _say_what_was_used(name, weights, facts, used, fitted.key)
    return model, fitted, to_plain(used)


def requested_args(cfg: dict[str, Any], args: dict[str, Any], options: SourceOptions) -> dict[str, Any]:
    """Arguments of `timm.create_model` for what the user asked for explicitly."""
    kwargs = of_the_file(options)
    for key, value in (("num_classes", options.num_classes), ("in_chans", options.channels)):
        kwargs |= {} if value is None else {key: value}
    return kwargs if options.image_size is None else {**kwargs, **size_args(cfg, args, options.image_size)}


def _facts_for(name: str, weights: Weights) -> Facts:
    """What is recorded, unless of another architecture than the one that was asked for."""
    recorded = recorded_name(weights)
    if recorded is None or recorded.partition(".")[0] == name.partition(".")[0]:
        return weights.facts
    logger.warning("%s says that it is %s: what it records is not used for %s", weights.path, recorded, name)
    return Facts()


def of_the_file(options: SourceOptions) -> dict[str, Any]:
    """Arguments that say what a bare file is, where its weights cannot."""
    given = dict(options.model_kwargs or {})
    return given if options.global_pool is None else {**given, "global_pool": options.global_pool}


def _say_what_was_used(name: str, weights: Weights, facts: Facts, used: dict[str, Any], key: str) -> None:
    told = ", ".join(
        f"{argument}={value if argument != 'label_names' else f'{len(value)} names'}"
        + (f" (recorded in {facts.origins[argument]})" if argument in facts.origins else "")
        for argument, value in used.items()
    )
    where = f" ({key})" if key else ""
    facts_log.info("%s%s is read as %s: %s", weights.path, where, name, told)
