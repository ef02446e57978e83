"""Weights from the Hugging Face hub, as local files; offline it says so at once instead of retrying for a minute."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from timm.models._hub import download_cached_file, download_from_hf

from vitcompact.checkpoint.quiet import first_line, quiet_timm
from vitcompact.errors import UsageError

CONFIG_NAMES = ("config.json", "open_clip_config.json")
WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")
OPEN_CLIP_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_RANDOM = "or `random_weights` for an untrained model"
_PROXIES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


def fetch_pretrained(name: str, cfg: Mapping[str, Any]) -> Path:
    """The weights file of a pretrained timm model, downloaded where it is not cached.

    Raises:
        UsageError: the model has no pretrained weights, or they cannot be downloaded.
    """
    if cfg.get("hf_hub_id"):
        filename = cfg.get("hf_hub_filename")
        path = _fetch_first(cfg["hf_hub_id"], (filename,) if filename else WEIGHTS_NAMES, what=f"the weights of {name}")
    elif cfg.get("url"):
        with quiet_timm():
            try:
                path = Path(download_cached_file(cfg["url"]))
            except Exception as error:
                raise _cannot_download(f"the weights of {name}", error) from error
    else:
        raise UsageError(f"timm has no weights of {name}; give a weights file with `model='{name}'`, {_RANDOM}")
    return path


def fetch_directory(model_id: str, cache_dir: str | Path | None = None) -> Path:
    """The local folder with the configuration and the weights of a hub model (`org/name`, `org/name@revision`).

    Args:
        model_id: the model.
        cache_dir: where the hub client keeps its files; None for its own choice.

    Raises:
        UsageError: no such model, or it cannot be downloaded.
    """
    what = f"hf-hub:{model_id}"
    config = _fetch_first(model_id, CONFIG_NAMES, what=what, cache_dir=cache_dir)
    _fetch_first(model_id, (*WEIGHTS_NAMES, *OPEN_CLIP_NAMES), what=what, cache_dir=cache_dir)
    if b'"model_type"' in config.read_bytes():  # of transformers, which says in another file how images are prepared
        with suppress(UsageError):
            _fetch_first(model_id, ("preprocessor_config.json",), what=what, cache_dir=cache_dir)
    return config.parent


def _fetch_first(model_id: str, filenames: Iterable[str], *, what: str, cache_dir: str | Path | None = None) -> Path:
    """The first of several files that the hub has."""
    repo_id, _, revision = model_id.partition("@")
    for filename in filenames:
        try:
            cached = try_to_load_from_cache(repo_id, filename, cache_dir=cache_dir, revision=revision or None)
            if isinstance(cached, str):
                return Path(cached)
            if _offline():
                continue
            with quiet_timm():
                return Path(download_from_hf(model_id, filename, cache_dir=cache_dir))
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
            raise UsageError(f"the hub has no model {model_id!r} that you may read: {first_line(error)}") from error
        except LocalEntryNotFoundError as error:  # no connection; before its parent class, which means 'no such file'
            raise _cannot_download(what, error) from error
        except EntryNotFoundError:
            continue
        except Exception as error:
            raise _cannot_download(what, error) from error
    if _offline():
        raise _cannot_download(what, None)
    raise UsageError(f"{what}: the hub has none of {', '.join(filenames)} there")


def _cannot_download(what: str, error: Exception | None) -> UsageError:
    reason = f": {first_line(error)}" if error is not None else ": not in the local cache, and the hub is out of reach"
    return UsageError(f"cannot download {what}{reason}; give a local directory or weights file instead, {_RANDOM}")


def _offline() -> bool:
    """Whether the hub is out of reach for certain: told so, or its name does not resolve (and there is no proxy)."""
    if constants.HF_HUB_OFFLINE:
        return True
    if any(os.environ.get(name) for name in _PROXIES):
        return False
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return True
    return False
