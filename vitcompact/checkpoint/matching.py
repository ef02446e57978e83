"""Puts a state dict into a model: all of it or an error that says what does not fit."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import get_model_traits, load_pretrained
from torch import Tensor, nn

from vitcompact.checkpoint.convert import FilterFn, find_filter, to_layout
from vitcompact.checkpoint.extras import split_extras
from vitcompact.checkpoint.quiet import quiet_timm
from vitcompact.errors import CheckpointError

logger = logging.getLogger("vitcompact")

Shape = tuple[int, ...]
_SHOWN = 3
_TABLES = ("pos_embed", "relative_position_bias_table", "rel_pos_h", "rel_pos_w")


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

    Names of other layouts are converted as timm does. Nothing is resampled or replaced but where the model is made to
    differ from its checkpoint (`model.pretrained_cfg` describes that): a position embedding or bias table for another
    image size, a stem for another number of channels, an untrained classifier for another number of classes. What of
    it happens is said in a warning.

    Args:
        model: built by timm with `pretrained=False`.
        state_dict: tensors by name.
        base: timm architecture whose conversions apply.
        label: the weights' name in messages.

    Raises:
        CheckpointError: names or shapes differ; they are summarised. Or numbers that are no weights.
    """
    expected = model.state_dict()
    if not compare(state_dict, expected).fits:
        layout = to_layout(state_dict, base, model)
        state_dict, left_out = split_extras(layout, model)
        if left_out:
            logger.warning("%s: left out, since %s has none of it: %s", label, base, left_out)
    state_dict = as_weights(state_dict, expected, label)
    diff = compare(state_dict, expected)
    resized, replaced, channels = _resized(model), _replaced_head(model), _other_channels(model)
    if diff.fits and not resized:
        model.load_state_dict(dict(state_dict), strict=True)
        return
    if not (resized or replaced or channels):
        raise CheckpointError(f"{label} does not fit {base}: {diff.summary()}{_way_out(diff, model)}")
    leftover = _fill_converted(model, state_dict, find_filter(base))
    if leftover is None or not leftover.without(replaced).fits:
        raise CheckpointError(f"{label} does not fit {base}: {(leftover or diff).without(replaced).summary()}")
    _say_what_changed(model, label, state_dict, expected, replaced)


def _way_out(diff: KeyDiff, model: nn.Module) -> str:
    """What to give where nothing but tables of positions have another size, which they do not tell."""
    names = [name for name, _, _ in diff.mismatched]
    if diff.missing or diff.unexpected or not all(name.endswith(_TABLES) for name in names):
        return ""
    cfg: Any = model.pretrained_cfg
    height = width = int(cfg["input_size"][-1])
    given = f"img_size=({height},{width // 2})"
    return f": of images of another size, which these do not tell: give it, such as `model_kwargs='{given}'`"


def as_weights(state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor], label: str) -> dict[str, Tensor]:
    """Tensors as a model takes them: sparse ones written out.

    Raises:
        CheckpointError: integers or quantised numbers in the place of floating-point ones, which are no weights by
            themselves.
    """
    plain = {}
    for name, tensor in state_dict.items():
        wanted = expected.get(name)
        if tensor.is_quantized or (
            wanted is not None
            and wanted.is_floating_point()
            and not (tensor.is_floating_point() or tensor.is_complex())
        ):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{label}: tensor {name} is {kind}, where the model has floating-point weights: give the checkpoint"
                " from before it was quantised"
            )
        plain[name] = tensor if tensor.layout == torch.strided else tensor.to_dense()
    return plain


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


def _other_channels(model: nn.Module) -> bool:
    """Whether the model takes another number of channels than its checkpoint."""
    cfg: Any = model.pretrained_cfg
    return getattr(model, "in_chans", None) not in (None, (cfg.get("input_size") or (3,))[0])


def _say_what_changed(
    model: nn.Module,
    label: str,
    state_dict: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    replaced: tuple[str, ...],
) -> None:
    cfg: Any = model.pretrained_cfg
    if replaced:
        old, new = cfg.get("num_classes"), model.num_classes
        logger.warning(
            "%s: its classifier of %s classes is replaced by an untrained one of %s classes", label, old, new
        )
    other = [name for name, _, _ in compare(state_dict, expected).without(replaced).mismatched]
    if other:
        logger.warning(
            "%s: resampled as timm does, for other images than it was made for: %s", label, _first_few(other)
        )


def _first_few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
