"""What the library's functions are given, checked before the long work: the model, and images that it takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vitcompact.data.batches import ImageBatches, check_batch, from_tensor
from vitcompact.data.config import resolve_input
from vitcompact.errors import CheckpointError, DataError, UsageError
from vitcompact.models.cost import meta_copy


def check_model(model: object, name: str = "model", dtype: torch.dtype | None = None, *, weights: bool = True) -> None:
    """Refuse what is no timm model with finite floating-point weights of one type.

    Args:
        name: of the parameter, for the message.
        dtype: the only type accepted, None for any.
        weights: refuse a model on the meta device, which has none.

    Raises:
        UsageError: see above.
        CheckpointError: weights that are not finite; the message names the first.
    """
    if isinstance(model, str):
        raise UsageError(f"{name} must be a timm module, got the text {model!r}: timm.create_model makes one of a name")
    if not isinstance(model, nn.Module):
        raise UsageError(f"{name} must be a timm module, got {type(model).__name__}")
    if not hasattr(model, "forward_features"):
        inner = next((path for path, child in model.named_modules() if hasattr(child, "forward_features")), None)
        hint = f": pass the timm module inside it, `{name}.{inner}`" if inner else ", as timm.create_model makes them"
        raise UsageError(f"{name} must be a timm module, got {type(model).__name__}{hint}")
    types = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()})
    first = next(model.parameters(), None)
    if first is None or len(types) != 1 or not first.is_floating_point() or dtype not in (None, first.dtype):
        wanted = "floating-point weights of one type" if dtype is None else f"{str(dtype).split('.')[1]} weights"
        found = " and ".join(types) or "no weights"
        raise UsageError(f"{name} must have {wanted}, got {found}: pass {name}.float()")
    if weights:
        check_weights(model, name)
    for tensor, values in (*model.named_parameters(), *model.named_buffers()):
        if values.is_floating_point() and not values.is_meta and not torch.isfinite(values).all():
            raise CheckpointError(f"{name} is damaged: {tensor} holds NaN or infinite values")


def check_weights(model: nn.Module, name: str = "model") -> None:
    """Refuse a model on the meta device.

    Raises:
        UsageError: see above.
    """
    if has_no_weights(model):
        raise UsageError(
            f"{name} is on the meta device and has no weights: there, `plan` and `analyze` without images and targets "
            "tell what a pair saves; for all else make it on another device"
        )


def has_no_weights(model: nn.Module) -> bool:
    """Whether a model is on the meta device, where tensors are shapes alone."""
    return any(parameter.is_meta for parameter in model.parameters())


def images_for(
    model: nn.Module, images: Tensor | Iterable[Any] | ImageBatches, batch_size: int = 64, name: str = "images"
) -> ImageBatches:
    """The images that a function was given, as batches that `model` takes; see `from_tensor`.

    Args:
        name: of the parameter, for the message.

    Raises:
        UsageError: what are no images, or none at all.
        DataError: images of a size or with values that this model was not made for.
    """
    batches = from_tensor(images, batch_size, channels=resolve_input(model).input_size[0])
    check_size(model, next(iter(batches)), name)
    return batches


def check_images(model: nn.Module, images: Tensor, name: str = "images") -> None:
    """The same checks for one batch.

    Raises:
        UsageError, DataError: as `images_for`.
    """
    if isinstance(images, Tensor) and not len(images):
        raise UsageError(f"{name} are empty: at least one image is needed")
    check_size(model, check_batch(images, resolve_input(model).input_size[0]), name)


def check_size(model: nn.Module, images: Tensor, name: str = "images") -> None:
    """Refuse images of a size that `model` does not run on. Another size than its own is tried, on a copy without data.

    Raises:
        DataError: see above.
    """
    given, own = tuple(images.shape[1:]), resolve_input(model).input_size
    if given == own:
        return
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    try:
        with torch.no_grad():
            meta_copy(model).eval()(torch.empty(1, *given, device="meta", dtype=dtype))
    except (AssertionError, RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(
            f"{name} are {_text(given)}, which this model does not take ({reason}): give {_text(own)}"
        ) from error


def _text(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))
