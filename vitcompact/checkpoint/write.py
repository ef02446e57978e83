"""Writes a model as a directory that timm loads: everything or nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models._hub import save_config_for_hf
from timm.utils.model import unwrap_model
from torch import Tensor, nn

from vitcompact.checkpoint.card import model_card
from vitcompact.checkpoint.disk import check_out, write_tensors
from vitcompact.checkpoint.names import ENTRYPOINT
from vitcompact.checkpoint.overrides import Override
from vitcompact.checkpoint.provenance import Provenance
from vitcompact.checkpoint.quiet import timm_errors
from vitcompact.checkpoint.rebuilt import check_written, unrecorded
from vitcompact.checkpoint.record import FILES, RECORD_NAME, Record
from vitcompact.data import check_weights, resolve_input
from vitcompact.errors import UsageError
from vitcompact.plans.schema import Plan
from vitcompact.utils.files import disk_errors, json_text, publish, staged

_LABELS = ("label_names", "label_descriptions")


def save(
    model: nn.Module,
    out: str | Path,
    *,
    provenance: Provenance | None = None,
    options: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    beside: Mapping[str, bytes | Path] | None = None,
) -> Path:
    """Save a timm model, with or without a plan, in timm's hub layout.

    Writes `model.safetensors`, `config.json` (with the whole plan), `vitcompact.json` and `README.md` into a
    temporary sibling of `out`, loads that and compares outputs with those of `model`, and renames it, so `out` is
    complete and computes the same, or does not exist.

    Args:
        model: made by timm; `model.vitcompact_plan` is recorded where there is one.
        out: the directory to write.
        provenance: where the original weights came from.
        options: effective options, recorded as they are.
        results: measured results, recorded as they are and shown in the model card.
        dtype: floating-point type of the saved tensors; None keeps each as it is.
        overwrite: replace an existing directory that holds nothing but what this function wrote.
        beside: more files to lie in `out`, by name: their content, or the file that is copied. They are recorded.

    Returns:
        The directory.

    Raises:
        UsageError: `out` exists, cannot be written or the disk is full; the model is not one that timm made, or was
            changed in a way that cannot be recorded.
        VerificationError: what was written computes something else; nothing is left of it.
    """
    keep = {} if provenance is None else {"the original": provenance.local_path}
    out = check_out(out, overwrite=overwrite, keep=keep)
    model = unwrap_model(model)
    base = _base_of(model)
    check_weights(model)
    plan = getattr(model, "vitcompact_plan", None) or Plan(layers=())
    files = (*FILES, *(beside or {}))
    record = Record(base, plan, provenance, dict(options or {}), dict(results or {}), files=files)
    tensors = _tensors(model, dtype)
    texts = {
        RECORD_NAME: json_text(record.published(out)),
        "README.md": model_card(
            record,
            title=out.name,
            num_classes=int(model.num_classes),  # type: ignore[arg-type]
            license_name=_cfg(model).get("license"),
        ),
    }
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    with disk_errors(out, num_bytes), staged(out) as folder:
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        _write_config(model, folder / "config.json", base, plan)
        _record_overrides(folder / "config.json", unrecorded(model, folder))
        write_tensors(tensors, folder / "model.safetensors")
        for name, content in (beside or {}).items():
            _put(content, folder / name)
        check_written(model, folder, tensors)
        check_out(out, overwrite=overwrite, keep=keep)  # again: something may have appeared meanwhile
        publish(folder, out)
    return out


def _put(content: bytes | Path, path: Path) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        shutil.copyfile(content, path)


def _base_of(model: nn.Module) -> str:
    """The timm architecture that a model was made from."""
    cfg = _cfg(model)
    architecture = cfg.get("architecture")
    if architecture == ENTRYPOINT:
        architecture = _recorded_args(model).get("base")
    if not isinstance(architecture, str) or not hasattr(model, "num_classes"):
        inside = (path for path, module in model.named_modules() if path and _cfg(module).get("architecture"))
        path = next(inside, None)
        hint = f"; the one inside it is `model.{path}`" if path else ""
        raise UsageError(
            f"cannot save a {type(model).__name__}: expected a model made by timm.create_model (not features_only)"
            + hint
        )
    return architecture


def _write_config(model: nn.Module, path: Path, base: str, plan: Plan) -> None:
    """timm's `config.json`, with our entrypoint as the architecture and the plan among its arguments."""
    cfg = _cfg(model)
    labels = {key: cfg[key] for key in _LABELS if cfg.get(key) and model.num_classes == cfg.get("num_classes")}
    with timm_errors(UsageError, "the model's arguments cannot be recorded"):
        save_config_for_hf(
            model,
            str(path),
            model_config={"pretrained_cfg": {"architecture": ENTRYPOINT}, **labels},
            model_args={"base": base, "plan": plan.to_json()},
        )
    config = json.loads(path.read_text(encoding="utf-8"))
    args = config["model_args"]
    args = {**args.pop("base_args", {}), **args}
    if args.get("num_classes") == config["num_classes"]:
        del args["num_classes"]  # transformers' TimmWrapper gives it beside model_args, and would give it twice
    config["model_args"] = _ordered({**args, "base": base})
    config["pretrained_cfg"]["architecture"] = ENTRYPOINT
    config["pretrained_cfg"]["input_size"] = list(resolve_input(model).input_size)  # of a model built for another one
    for key in labels:  # timm reads them from the top level
        config["pretrained_cfg"].pop(key, None)
    path.write_text(json_text(config), encoding="utf-8")


def _ordered(args: Mapping[str, Any]) -> dict[str, Any]:
    inner = {key: args[key] for key in sorted(args) if key not in ("base", "plan")}
    return {"base": args["base"], **inner, "plan": args["plan"]}


def _record_overrides(path: Path, overrides: Sequence[Override]) -> None:
    if overrides:
        config = json.loads(path.read_text(encoding="utf-8"))
        args = config["model_args"]
        args["overrides"] = [*args.get("overrides", ()), *(override.to_json() for override in overrides)]
        config["model_args"] = _ordered(args)
        path.write_text(json_text(config), encoding="utf-8")


def _tensors(model: nn.Module, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The state dict as safetensors wants it: on the CPU, contiguous, no two tensors in one piece of memory.

    Raises:
        UsageError: `dtype` is no floating-point type, or cannot hold a weight; or a weight is no plain tensor.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise UsageError(f"dtype must be a floating-point type, got {dtype}")
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in model.state_dict().items():
        saved = tensor.detach().to("cpu")
        if type(saved) is not Tensor:
            raise UsageError(
                f"{name} is a {type(saved).__name__}, not a plain tensor: save the model before its weights are "
                "quantized, and quantize what is loaded"
            )
        if dtype is not None and tensor.is_floating_point():
            saved = _cast(name, saved, dtype)
        saved = saved.contiguous()
        storage = saved.untyped_storage()
        if storage.data_ptr() in storages or storage.nbytes() != saved.numel() * saved.element_size():
            saved = saved.clone()
        storages.add(saved.untyped_storage().data_ptr())
        tensors[name] = saved
    return tensors


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    cast = tensor.to(dtype)
    if torch.isfinite(tensor).all() and not torch.isfinite(cast).all():
        raise UsageError(
            f"{dtype} cannot hold {name} (largest value {tensor.abs().max():.4g}); bfloat16 or float32 can"
        )
    return cast


def _cfg(model: nn.Module) -> dict[str, Any]:
    cfg: Any = getattr(model, "pretrained_cfg", None)
    return cfg or {}


def _recorded_args(model: nn.Module) -> dict[str, Any]:
    """The arguments that timm's factory recorded on the model."""
    args: Any = getattr(model, "_model_args", None)
    return args or {}
