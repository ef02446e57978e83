"""Any SOURCE that a user may name, as a model and where it came from."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from vitcompact.checkpoint.bare import build_from, of_the_file, recorded_name, requested_args
from vitcompact.checkpoint.candidates import candidates
from vitcompact.checkpoint.directory import is_hub_directory, load_directory, read_config, registered_cfg
from vitcompact.checkpoint.foreign import ForeignDirectory, build, foreign_directory, torchvision_model
from vitcompact.checkpoint.foreign.described import Described
from vitcompact.checkpoint.hub import fetch_directory, fetch_pretrained
from vitcompact.checkpoint.names import ENTRYPOINT, require_known
from vitcompact.checkpoint.provenance import DIR_PREFIX, Provenance, SourceKind, settings_of
from vitcompact.checkpoint.quiet import timm_errors
from vitcompact.checkpoint.read import SUFFIXES, Weights, has_weights_suffix, read_weights, weights_file_of
from vitcompact.checkpoint.stored import dtype_of, stored_dtype
from vitcompact.errors import CheckpointError, UsageError
from vitcompact.options.source import SourceOptions
from vitcompact.utils.files import restored
from vitcompact.utils.reading import user_path
from vitcompact.utils.text import some

logger = logging.getLogger("vitcompact")
_HUB_PREFIXES = ("hf-hub:", "hf_hub:")


@dataclass(frozen=True)
class LoadedModel:
    """A model (float32, evaluation mode, CPU), where it came from, and the number format that it is stored in there."""

    model: nn.Module
    provenance: Provenance
    dtype: torch.dtype = torch.float32


def load_source(source: str, options: SourceOptions | None = None) -> LoadedModel:
    """Load a model from a timm name, `hf-hub:ORG/NAME`, `local-dir:DIR`, a directory or a weights file.

    Args:
        source: what the user gave.
        options: how to read it.

    Raises:
        UsageError: unknown name, missing file, not downloadable, or an architecture that must be named.
        CheckpointError: damaged, hostile, or the weights of another architecture.
    """
    options = options or SourceOptions()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        loaded = _load(source.strip(), options)
    provenance = replace(loaded.provenance, settings=settings_of(loaded.model))
    return LoadedModel(loaded.model.float().eval(), provenance, loaded.dtype)


def is_timm_name(source: str) -> bool:
    """Whether a SOURCE is read as the name of a timm model."""
    return bool(timm.is_model(source)) and not Path(source).exists()


def _load(source: str, options: SourceOptions) -> LoadedModel:
    if not source:
        raise UsageError("SOURCE is empty; give a timm model name, hf-hub:ORG/NAME, a directory or a weights file")
    path = restored(user_path(source.removeprefix(DIR_PREFIX)))
    if source.lower().startswith(_HUB_PREFIXES):
        _refuse_file_options(source, options)
        return _from_directory(source, fetch_directory(source.partition(":")[2]), "hf-hub", options)
    if source.lower().startswith(DIR_PREFIX):
        _refuse_file_options(source, options)
        return _from_directory(source, user_path(source[len(DIR_PREFIX) :]), "local-dir", options)
    if path.is_file():
        return _from_file(source, path, options)
    if path.is_dir() and (is_hub_directory(path) or not timm.is_model(source)):
        _refuse_file_options(source, options)
        return _from_directory(source, path, "local-dir", options)
    if "/" in source or "\\" in source or has_weights_suffix(path):
        hint = (
            f"; for a model on the hub give hf-hub:{source}"
            if source.count("/") == 1 and source[0] not in "./~"
            else ""
        )
        raise UsageError(f"no such file or directory: {source!r}{hint}")
    return _from_name(source, options)


def _refuse_file_options(source: str, options: SourceOptions) -> None:
    if options.model is not None:
        raise UsageError(f"`model` names the architecture of a bare weights file; {source} says its own")
    if options.state_key is not None:
        raise UsageError(f"`state_key` names a part of a bare weights file, got {source}")
    if options.random_weights:
        raise UsageError(f"`random_weights` needs a timm model name, got {source}")


def _from_name(name: str, options: SourceOptions) -> LoadedModel:
    architecture = require_known(name)
    if options.model is not None:
        raise UsageError(f"`model` names the architecture of a bare weights file; {name} is a timm model")
    cfg = registered_cfg(name)
    kwargs = requested_args(cfg, {}, options)
    if options.random_weights:
        with timm_errors(UsageError, f"{architecture} cannot be built as asked"):
            model: nn.Module = timm.create_model(name, pretrained=False, **kwargs)
        _forget_weights(model)
        return LoadedModel(model, Provenance(name, "random", architecture))
    path = fetch_pretrained(name, cfg)
    overlay = {"file": str(path), "custom_load": cfg.get("custom_load", False)}
    overlay.update(kwargs.pop("pretrained_cfg_overlay", {}))
    with timm_errors(CheckpointError, f"{name} cannot be loaded from {path}"):
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
    _forget(model, "file")
    return LoadedModel(model, Provenance.of_file(name, "timm", architecture, path), stored_dtype(path))


def _from_directory(source: str, directory: Path, kind: SourceKind, options: SourceOptions) -> LoadedModel:
    foreign = foreign_directory(directory)
    if foreign is not None:
        return _from_foreign(source, foreign, kind, options)
    cfg, architecture, args = read_config(directory)
    model = load_directory(directory, **requested_args(cfg, args, options))
    base = str(args.get("base")) if architecture == ENTRYPOINT else architecture
    path = weights_file_of(directory)
    return LoadedModel(model, Provenance.of_file(source, kind, base, path), stored_dtype(path))


def _from_foreign(source: str, foreign: ForeignDirectory, kind: SourceKind, options: SourceOptions) -> LoadedModel:
    """A directory of another library, as the timm model that computes the same."""
    described = foreign.describe(options.image_size)
    if not foreign.prepared:
        logger.warning("%s does not say how images are prepared: %s's usual way is taken", source, foreign.layout.title)
    model = _build_described(described, str(foreign.path), options)
    _forget_weights(model)
    provenance = Provenance.of_file(source, kind, described.architecture, foreign.weights)
    return LoadedModel(model, provenance, dtype_of(described.tensors))


def _from_file(source: str, path: Path, options: SourceOptions) -> LoadedModel:
    if options.random_weights:
        raise UsageError(f"`random_weights` needs a timm model name, got the weights file {path}")
    if not has_weights_suffix(path):
        raise UsageError(f"{path}: not a weights file by its name; accepted: {', '.join(SUFFIXES)}")
    weights = read_weights(path).only(options.state_key)
    if (described := _of_torchvision(weights)) is not None:
        return _from_torchvision(source, path, described, options)
    name = options.model or recorded_name(weights) or _ask_for_name(weights)
    architecture = require_known(name)
    model, fitted, used = build_from(name, architecture, weights, options)
    _forget_weights(model)
    provenance = replace(Provenance.of_file(source, "file", architecture, weights.path), read_as=used)
    return LoadedModel(model, provenance, dtype_of(fitted.state_dict))


def _of_torchvision(weights: Weights) -> Described | None:
    """What a state dict of the file is in timm's terms where torchvision wrote it; of several, the one to take."""
    found = [described for box in weights.boxes.values() if (described := torchvision_model(box)) is not None]
    return torchvision_model(weights.state_dict) if len(found) > 1 else found[0] if found else None


def _from_torchvision(source: str, path: Path, described: Described, options: SourceOptions) -> LoadedModel:
    architecture = require_known(options.model) if options.model is not None else described.architecture
    described = replace(described, architecture=architecture)
    model = _build_described(described, str(path), options)
    _forget_weights(model)
    provenance = Provenance.of_file(source, "file", architecture, path)
    return LoadedModel(model, provenance, dtype_of(described.tensors))


def _build_described(described: Described, label: str, options: SourceOptions) -> nn.Module:
    more = of_the_file(options)
    if options.channels is not None:
        more["in_chans"] = options.channels
    return build(described, label, num_classes=options.num_classes, image_size=options.image_size, more=more)


def _ask_for_name(weights: Weights) -> str:
    if is_hub_directory(weights.path.parent):
        raise UsageError(
            f"{weights.path} does not say its architecture, but {weights.path.parent} does: give that directory"
        )
    found = candidates(weights.state_dict, weights.architecture)
    recorded = f" It records {weights.architecture!r}, which timm does not have." if weights.architecture else ""
    listed = some([f"`model='{name}'`" for name in found])
    hint = f" Its shapes are those of {listed}." if found else " No architecture of timm was found to have its shapes."
    raise UsageError(f"{weights.path} does not say its architecture; give it with `model='NAME'`.{recorded}{hint}")


def _forget_weights(model: nn.Module) -> None:
    """Remove what timm says about weights of the same name that are not these: where they are, their license."""
    _forget(model, "url", "hf_hub_id", "hf_hub_filename", "tag", "license", "origin_url", "description")


def _forget(model: nn.Module, *keys: str) -> None:
    cfg: Any = model.pretrained_cfg
    for key in keys:
        cfg.pop(key, None)
