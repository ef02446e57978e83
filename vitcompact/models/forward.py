"""Running a timm model for evaluation: modes, precision, pooled features and patch tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vitcompact.errors import UsageError


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Put the models into evaluation mode, and give every submodule its own mode back afterwards."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """Automatic mixed precision in `dtype`; None leaves the precision of the weights."""
    return torch.autocast(device.type, dtype=dtype) if dtype is not None else nullcontext()


def num_classes(model: nn.Module) -> int:
    """Number of outputs of the head, 0 for a model without one; a module that does not say has one."""
    return int(getattr(model, "num_classes", 1))


def logits(model: nn.Module, images: Tensor, amp_dtype: torch.dtype | None = None) -> Tensor:
    """float32 (batch, classes).

    Raises:
        UsageError: the model's output is not one row of logits an image.
    """
    with autocast(images.device, amp_dtype):
        output = model(_in_precision(images, model, amp_dtype))
    output = main_output(output)
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UsageError(f"a classifier gives (images, classes), this model gives {shape}")
    return output.float()


def main_output(output: Any) -> Any:
    """The tensor that counts in what a model returns: the first of a tuple or list, the `logits` of a dictionary."""
    while isinstance(output, (tuple, list, Mapping)) and len(output):
        if isinstance(output, Mapping):
            output = output["logits"] if "logits" in output else next(iter(output.values()))
        else:
            output = output[0]
    return output


def tensors_in(output: Any) -> Iterator[Tensor]:
    """All tensors in what a model returns, in the order in which they are there."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for item in output.values():
            yield from tensors_in(item)
    elif isinstance(output, (list, tuple)):
        for item in output:
            yield from tensors_in(item)


def features(model: nn.Module, images: Tensor, amp_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor | None]:
    """Pooled features, float32 (batch, channels), and patch tokens (batch, patches, channels), None where it has none.

    The cells of a feature map, as hierarchical models give it, count as patches.
    """
    forward_features = getattr(model, "forward_features", None)
    forward_head = getattr(model, "forward_head", None)
    images = _in_precision(images, model, amp_dtype)
    with autocast(images.device, amp_dtype):
        if forward_features is None or forward_head is None:
            return _flat(main_output(model(images))), None
        hidden = forward_features(images)
        pooled = forward_head(hidden, pre_logits=True)
    return _flat(pooled), _patches(model, hidden)


def _in_precision(images: Tensor, model: nn.Module, amp_dtype: torch.dtype | None) -> Tensor:
    """Images in the number format of the model's weights, which autocast chooses by itself."""
    weight = next(model.parameters(), None) if amp_dtype is None else None
    return images if weight is None or not weight.is_floating_point() else images.to(weight.dtype)


def _flat(pooled: Tensor) -> Tensor:
    return pooled.float().flatten(1)


def _patches(model: nn.Module, hidden: object) -> Tensor | None:
    if not isinstance(hidden, Tensor) or hidden.ndim not in (3, 4):
        return None
    if hidden.ndim == 4:
        channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        tokens = hidden.flatten(1, 2) if channels_last else hidden.flatten(2).transpose(1, 2)
    else:
        tokens = hidden[:, int(getattr(model, "num_prefix_tokens", 0)) :]
    return tokens.float() if tokens.shape[1] else None
