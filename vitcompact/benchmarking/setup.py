"""How both models of a benchmark are run: device, precision, memory format, compilation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from vitcompact.errors import UsageError
from vitcompact.exporting import RUNTIMES, ExportedModel, check_runtime, hosted, runtime_of
from vitcompact.utils.copies import copy_of
from vitcompact.utils.device import synchronise


@dataclass(frozen=True)
class Setup:
    """How both models are run; `backend` is one of `vitcompact.options.benchmarking.Backend`."""

    device: torch.device
    dtype: torch.dtype | None
    amp_dtype: torch.dtype | None
    channels_last: bool
    backend: str = "torch"

    def __post_init__(self) -> None:
        if self.backend not in RUNTIMES:
            return
        check_runtime(self.backend)
        plain = self.dtype is None and self.amp_dtype is None and not self.channels_last
        if self.device.type != "cpu" or not plain:
            raise UsageError(
                f"`backend='{self.backend}'` runs float32 on the CPU here: leave out `device`, `dtype`, `amp` and "
                "`channels_last`; other number formats are files of `vitcompact export`"
            )

    def prepare(self, model: nn.Module) -> nn.Module:
        if self.backend in RUNTIMES:
            return hosted(model, self.backend)
        if isinstance(model, ExportedModel) and (runtime_of(model) or self.backend == "compile"):
            raise UsageError(f"{model.path} runs on {model.runtime}, not on `backend='{self.backend}'`")
        prepared = copy_of(model).to(device=self.device, dtype=self.dtype).eval()
        if self.channels_last:
            prepared = prepared.to(memory_format=torch.channels_last)
        return cast(nn.Module, torch.compile(prepared)) if self.backend == "compile" else prepared

    def images(self, shape: tuple[int, ...], seed: int) -> Tensor:
        images = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        images = images.to(self.device)
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def runner(self, model: nn.Module, images: Tensor) -> Callable[[], None]:
        """One forward pass that returns when the device has finished; images get the precision of the weights."""
        images = images.to(weight_dtype(model))

        def run() -> None:
            enabled = self.amp_dtype is not None
            with torch.inference_mode(), torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=enabled):
                model(images)
            synchronise(self.device)

        return run

    def describe(self, model: nn.Module) -> str:
        """Such as `cpu (2 threads), float32, attention: fused sdpa x12`."""
        kind = self.device.type
        where = torch.cuda.get_device_name(self.device) if kind == "cuda" else f"{torch.get_num_threads()} threads"
        precision = _name(weight_dtype(model)) if self.amp_dtype is None else f"{_name(self.amp_dtype)} autocast"
        if isinstance(model, ExportedModel):
            return f"{kind} ({where}), {model.runtime}, {model.description.precision}"
        parts = [f"{kind} ({where})", precision]
        parts += ["channels last"] if self.channels_last else []
        parts += ["torch.compile"] if self.backend == "compile" else []
        attention = ", ".join(f"{name} x{count}" for name, count in sorted(attention_backends(model).items()))
        return ", ".join(parts) + (f", attention: {attention}" if attention else "")


def chosen_backend(backend: str | None, torchcompile: bool, *models: nn.Module) -> str:
    """What runs both models, where it was not said: the runtime of an exported file among them, else PyTorch.

    Raises:
        UsageError: two backends were asked for.
    """
    if torchcompile and backend not in (None, "compile"):
        raise UsageError(f"`torchcompile` is `backend='compile'`: leave out it or `backend='{backend}'`")
    if backend is not None:
        return backend
    own = next((name for name in map(runtime_of, models) if name is not None), "torch")
    return "compile" if torchcompile else own


def weight_dtype(model: nn.Module) -> torch.dtype:
    """Precision of the first parameter."""
    return next((p.dtype for p in model.parameters()), torch.float32)


def attention_backends(model: nn.Module) -> Counter[str]:
    """Replaced attention modules say what they use in `backend`; timm's have `fused_attn`."""
    found: Counter[str] = Counter()
    for module in model.modules():
        backend, fused = getattr(module, "backend", None), getattr(module, "fused_attn", None)
        if isinstance(backend, str):
            found[backend] += 1
        elif isinstance(fused, bool):
            found["timm fused" if fused else "timm unfused"] += 1
    return found


def open_device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"no device '{device}' here: {first_line(error)}") from error
    return found


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
