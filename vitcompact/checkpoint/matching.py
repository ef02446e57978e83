"""Puts a state dict into a model: all of it or an error that says what does not fit."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
from timm.models import get_model_traits, load_pretrained
from torch import Tensor, nn

from vitcompact.checkpoint.quiet import quiet_timm
from vitcompact.errors import CheckpointError

logger = logging.getLogger("vitcompact")

Shape = tuple[int, ...]
FilterFn = Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]
_SHOWN = 3


@dataclass(frozen=True)
class KeyDiff:
    """How a state dict differs from what a model has.

    Attributes:
        missing: names that only the model has.
        unexpected: names that only the file has.
        mismatched: names with another shape, as (name, shape in the file, shape in the model).
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, Shape, Shape], ...]

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def without(self, names: Iterable[str]) -> KeyDiff:
        """The same, not counting these names."""
        ignored = set(names)
        return KeyDiff(
            tuple(name for name in self.missing if name not in ignored),
            tuple(name for name in self.unexpected if name not in ignored),
            tuple(item for item in self.mismatched if item[0] not in ignored),
        )

    def summary(self) -> str:
        """Counts and the first few names of each side, on one line."""
        shapes = [f"{name}: file {file}, model {model}" for name, file, model in self.mismatched]
        parts = (
            (len(self.missing), "missing from the file", self.missing),
            (len(self.unexpected), "unexpected in the file", self.unexpected),
            (len(self.mismatched), "with another shape", shapes),
        )
        return "; ".join(f"{count} {what} ({_first_few(names)})" for count, what, names in parts if count)


def compare(state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> KeyDiff:
    """Names and shapes of a state dict against those of a model's state dict."""
    shared = [name for name in expected if name in state_dict]
    return KeyDiff(
        tuple(name for name in expected if name not in state_dict),
        tuple(name for name in state_dict if name not in expected),
        tuple(
            (name, tuple(state_dict[name].shape), tuple(expected[name].shape))
            for name in shared
            if state_dict[name].shape != expected[name].shape
        ),
    )


def fill(model: nn.Module, state_dict: Mapping[str, Tensor], *, base: str, label: str) -> None:
    """Load `state_dict` into `model`, every tensor of it.

    Where it does not fit as it is, timm's own conversions are tried: foreign layouts of the architecture, a position
    embedding of another image size (`model.pretrained_cfg['input_size']` is the checkpoint's), another number of
    input channels, and a classifier of another size, which is left untrained.

    Args:
        model: built by timm with `pretrained=False`.
        state_dict: tensors by name.
        base: timm architecture whose conversions apply.
        label: the weights' name in messages.

    Raises:
        CheckpointError: names or shapes differ; they are summarised.
    """
    diff = compare(state_dict, model.state_dict())
    if diff.fits and not _resized(model):
        model.load_state_dict(dict(state_dict), strict=True)
        return
    replaced = _replaced_head(model)
    leftover = _fill_converted(model, state_dict, find_filter(base))
    if leftover is None or not leftover.without(replaced).fits:
        raise CheckpointError(f"{label} does not fit {base}: {(leftover or diff).without(replaced).summary()}")
    if replaced:
        logger.warning("%s: its classifier is replaced by an untrained one of %d classes", label, model.num_classes)


def find_filter(base: str) -> FilterFn | None:
    """The function with which timm converts foreign weights of an architecture.

    By timm's convention it is called `checkpoint_filter_fn` and lives in the module of the architecture.
    """
    module = sys.modules[timm.model_entrypoint(base).__module__]
    function = getattr(module, "checkpoint_filter_fn", None)
    if function is not None and "adapt_layer_scale" in inspect.signature(function).parameters:
        return partial(function, adapt_layer_scale=True)  # as timm's deit module does; a no-op for other layouts
    return function


def classifier_names(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """Module paths of the classifiers (several for distilled models) named by a pretrained_cfg."""
    names = cfg.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _fill_converted(model: nn.Module, state_dict: Mapping[str, Tensor], filter_fn: FilterFn | None) -> KeyDiff | None:
    """Load through timm's conversions; return what is still missing or unexpected, None where they do not apply."""
    leftover: list[KeyDiff] = []

    def record(_: nn.Module, keys: Any) -> None:
        leftover.append(KeyDiff(tuple(keys.missing_keys), tuple(keys.unexpected_keys), ()))

    cfg: Any = model.pretrained_cfg
    cfg = {**cfg, "state_dict": dict(state_dict), "source": "", "custom_load": False, "label_offset": 0}
    handle = model.register_load_state_dict_post_hook(record)
    try:
        with quiet_timm():
            load_pretrained(
                model,
                cfg,
                num_classes=model.num_classes,
                in_chans=getattr(model, "in_chans", cfg["input_size"][0]),
                filter_fn=filter_fn,
            )
    except Exception:  # whatever a conversion makes of foreign names, the difference is what the user needs
        return None
    finally:
        handle.remove()
    return leftover[-1] if leftover else None


def _resized(model: nn.Module) -> bool:
    """Whether the model is built for another image size than its checkpoint."""
    size = get_model_traits(model).get("img_size")
    if size is None:
        return False
    cfg: Any = model.pretrained_cfg
    saved_args: Any = getattr(model, "pretrained_model_args", {})
    saved = saved_args.get("img_size") or cfg["input_size"][-2:]
    return tuple(size) != ((saved, saved) if isinstance(saved, int) else tuple(saved))


def _replaced_head(model: nn.Module) -> tuple[str, ...]:
    """State dict names of the classifier when the model has another number of classes than its checkpoint."""
    cfg: Any = model.pretrained_cfg
    if model.num_classes == cfg.get("num_classes"):
        return ()
    return tuple(f"{name}.{kind}" for name in classifier_names(cfg) for kind in ("weight", "bias"))


def _first_few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
