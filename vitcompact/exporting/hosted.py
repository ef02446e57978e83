"""Models in memory, run by another runtime than PyTorch: exported to a folder of their own, opened, and forgotten."""

from __future__ import annotations

from torch import nn

from vitcompact.errors import UsageError
from vitcompact.exporting.export import export
from vitcompact.exporting.registry import FORMATS
from vitcompact.exporting.runtime import ExportedModel, open_exported
from vitcompact.utils.scratch import scratch

RUNTIMES = {"onnxruntime": ".onnx", "openvino": ".xml"}
"""Runtimes other than PyTorch that a model can be handed to, with the format that each reads."""


def runtime_of(model: nn.Module) -> str | None:
    """The name in `RUNTIMES` of what runs an exported file; None for PyTorch."""
    suffix = model.path.suffix.lower() if isinstance(model, ExportedModel) else None
    return next((name for name, read in RUNTIMES.items() if read == suffix), None)


def check_runtime(name: str) -> None:
    """Raises UsageError, which names the extra, where a runtime is not installed; PyTorch is."""
    if name in RUNTIMES:
        form = FORMATS[RUNTIMES[name]]
        form.require(form.modules, form.extra)


def hosted(model: nn.Module, name: str) -> ExportedModel:
    """A model behind the runtime `name`; a file that this runtime runs is taken as it is.

    Raises:
        UsageError: a file of another runtime, or a model that cannot be exported.
        VerificationError: the runtime's outputs differ from PyTorch's.
    """
    if isinstance(model, ExportedModel):
        if runtime_of(model) != name:
            raise UsageError(f"{model.path} runs on {model.runtime}, not on `backend='{name}'`")
        return model
    with scratch() as folder:
        return open_exported(export(model, folder / f"model{RUNTIMES[name]}").out)
