"""What makes two runs the same: a saved state may be continued only by the run that it belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitcompact.errors import UsageError
from vitcompact.training.stream import TrainingStream

_FREE = ("eval_every", "eval_share", "save_minutes")
"""Options that do not change what is learned."""

_WHAT = {
    "model": "the converted model",
    "teacher": "the original (`teacher`)",
    "images": "the training images, their number, preparation, order or augmentation (`images`, `batch_size`, ...)",
    "device": "`device`",
    "amp": "`amp`",
}


def describe_run(
    model: nn.Module,
    teacher: nn.Module,
    stream: TrainingStream,
    first: tuple[Tensor, Tensor],
    options: Mapping[str, Any],
    device: torch.device,
    amp: bool,
) -> dict[str, Any]:
    """A JSON-ready identity of a run; images are told by their `first` batch, which all their options shape.

    Args:
        options: every option by its name in `TrainOptions`, rates as asked for.
    """
    parts = ("images", "labels") if options["labels"] else ("images",)
    chosen = {name: value for name, value in options.items() if name not in (*_FREE, "amp")}
    return {
        "options": chosen,
        "amp": amp,
        "device": device.type,
        "model": fingerprint(model.state_dict()),
        "teacher": fingerprint(teacher.state_dict()),
        "images": f"{stream.num_samples} {stream.batch_size} {fingerprint(dict(zip(parts, first, strict=False)))}",
    }


def check_same_run(saved: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Compare two identities.

    Raises:
        UsageError: they differ; says in what.
    """
    before, after = saved.get("options", {}), now["options"]
    differing = [
        f"`{name}` was {_shown(before.get(name))} and is {_shown(after[name])}"
        for name in after
        if before.get(name) != after[name]
    ]
    differing += [f"{what} changed" for key, what in _WHAT.items() if saved.get(key) != now[key]]
    if differing:
        raise UsageError(
            f"the training state in {where} belongs to another run: {'; '.join(differing)}. Continue with the same "
            "options, or leave `resume` out to start anew"
        )


def _shown(value: Any) -> str:
    return "not given" if value is None else str(value)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 over names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()
