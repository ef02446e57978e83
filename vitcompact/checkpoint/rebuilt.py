"""What is written is rebuilt and compared with the model before it gets its name."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vitcompact.checkpoint.directory import load_directory, read_config
from vitcompact.checkpoint.infer import without_memory
from vitcompact.checkpoint.matching import classifier_names, compare
from vitcompact.checkpoint.overrides import Override, activation_name, find_overrides
from vitcompact.checkpoint.quiet import quiet_timm, timm_errors
from vitcompact.checkpoint.timm_entry import build as entrypoint
from vitcompact.data import resolve_input
from vitcompact.errors import UsageError, VerificationError
from vitcompact.models.forward import eval_mode, tensors_in

TOLERANCE, OTHER_DEVICES = 1e-5, 1e-3
"""Largest difference of an output over the largest output: the same arithmetic; only the CPU repeats it to the bit."""
_IMAGES = 2
_SHOWN = 4


def unrecorded(model: nn.Module, folder: Path) -> tuple[Override, ...]:
    """What the `config.json` in `folder` does not say of `model` and an override can.

    Raises:
        UsageError: weights that what is recorded does not have, or has in another shape.
    """
    skeleton = _skeleton(folder)
    diff = compare(model.state_dict(), skeleton.state_dict())
    if not diff.fits:
        raise UsageError(
            f"this model cannot be saved: it was changed after timm made it, and timm cannot make it so again: compared"
            f" with what its recorded arguments give, {_swapped(diff.summary())}. {_way_out(model, skeleton)}"
        )
    return find_overrides(model, skeleton)


def check_written(model: nn.Module, folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Load what `folder` holds, and compare its outputs with those of `model` on fixed noise, in float32.

    Args:
        tensors: the weights as they were written, which may be rounded.

    Raises:
        VerificationError: they differ.
    """
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    with torch.random.fork_rng(devices=[]), quiet_timm():
        again = load_directory(folder).float().to(device).eval()
    reference = _as_written(model, tensors)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_IMAGES, *resolve_input(model).input_size, generator=generator).to(device)
    what = "this model does not run on images of its own size"
    with timm_errors(UsageError, what), eval_mode(reference), torch.no_grad():
        expected, found = list(tensors_in(reference(images))), list(tensors_in(again(images)))
    difference = _difference(expected, found)
    if difference > (TOLERANCE if device.type == "cpu" else OTHER_DEVICES):
        raise VerificationError(
            f"nothing is written: loaded again, this model would compute something else (largest difference "
            f"{difference:.2g} of the largest output). {_reasons(model, again)}"
        )


def _skeleton(folder: Path) -> nn.Module:
    """What `config.json` says, without memory."""
    cfg, _, args = read_config(folder)
    with timm_errors(UsageError, "this model cannot be saved"), torch.random.fork_rng(devices=[]), without_memory():
        return entrypoint(pretrained=False, pretrained_cfg=cfg, **args)


def _as_written(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    if all(tensor.dtype in (torch.float32, torch.long) for tensor in (*model.state_dict().values(), *tensors.values())):
        return model
    rounded = copy.deepcopy(model).float()
    rounded.load_state_dict(dict(tensors))
    return rounded


def _difference(expected: list[Tensor], found: list[Tensor]) -> float:
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        return float("inf")
    largest = apart = 0.0
    for one, other in zip(expected, found, strict=True):
        finite = one.isfinite()
        if not torch.equal(finite, other.isfinite()):
            return float("inf")
        if finite.any():
            largest = max(largest, float(one[finite].abs().max()))
            apart = max(apart, float((one - other)[finite].abs().max()))
    return apart / largest if largest else apart


def _swapped(summary: str) -> str:
    """`compare` speaks of a file and a model: here the file would be the model, and the model what timm makes."""
    words = {"from the file": "from it", "in the file": "in it", "file (": "it (", "model (": "timm ("}
    for old, new in words.items():
        summary = summary.replace(old, new)
    return summary


def _way_out(model: nn.Module, skeleton: nn.Module) -> str:
    """How the same is made so that it can be recorded."""
    for name in classifier_names(getattr(model, "pretrained_cfg", None) or {}):
        head, built = (dict(module.named_modules()).get(name) for module in (model, skeleton))
        if type(head) is nn.Linear and isinstance(built, nn.Module) and not isinstance(built, nn.Linear):
            return f"Its {name} has {head.out_features} outputs: set them with model.reset_classifier"
        if type(head) is nn.Linear and isinstance(built, nn.Linear) and head.out_features != built.out_features:
            return f"Give its {name} {head.out_features} outputs with model.reset_classifier({head.out_features})"
        if head is not None and built is not None and type(head) is not type(built):
            return (
                f"Its {name} is a {type(head).__name__}: save the model with a linear one (model.reset_classifier), "
                "and keep yours beside it"
            )
    return (
        "Make it with arguments of timm.create_model (depth, in_chans, img_size, global_pool, …) and load its weights"
    )


def _reasons(model: nn.Module, again: nn.Module) -> str:
    """In what a model differs from itself loaded again, as far as it shows."""
    found = []
    rebuilt = dict(again.named_modules())
    for name, module in model.named_modules():
        label = name or "the model"
        if module._forward_hooks or module._forward_pre_hooks:
            found.append(f"{label} has hooks")
        if "forward" in vars(module):
            found.append(f"{label} has another forward")
        other = rebuilt.get(name)
        if other is None:
            found.append(f"{label} ({type(module).__name__}) is new")
        elif (kind := type(module).__name__) != type(other).__name__ and not activation_name(module):
            found.append(f"{label} is a {kind}, not a {type(other).__name__}")
        else:
            found += [f"{label} has {setting}" for setting in _settings(module, other)]
    found += [f"{name} is gone" for name in rebuilt if name not in dict(model.named_modules())]
    shown = "; ".join(found[:_SHOWN]) + ("; …" if len(found) > _SHOWN else "")
    if not found:
        return "What differs does not show in its modules (a method that was replaced?): undo it before saving."
    return f"What config.json cannot say of it: {shown}. Undo that before saving, or keep it beside the directory."


def _settings(module: nn.Module, other: nn.Module) -> Iterator[str]:
    plain = (bool, int, float, str, tuple)
    for name, value in vars(module).items():
        usual = vars(other).get(name)
        if name[0] != "_" and name != "training" and isinstance(value, plain) and value != usual:
            yield f"{name} {value!r} instead of {usual!r}"
