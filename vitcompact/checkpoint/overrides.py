"""What differs from an architecture's skeleton and no argument of it can say: eps of norms, activations.

They travel in `config.json` beside the plan, and are put on the skeleton after the plan.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from timm.layers import create_act_layer
from torch import nn

from vitcompact.errors import CheckpointError

NUMBERS = ("eps",)
ACTIVATION = "act"
_MOST = 10_000  # overrides, and patterns of one, in a checkpoint that is no nonsense
_ACTIVATIONS = {
    **{"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "ReLU": "relu", "ReLU6": "relu6"},
    **{"SiLU": "silu", "Swish": "silu", "Mish": "mish", "Hardswish": "hard_swish", "HardSwish": "hard_swish"},
    **{"LeakyReLU": "leaky_relu", "ELU": "elu", "Sigmoid": "sigmoid", "Tanh": "tanh"},
}
_PLAIN = {"negative_slope": 0.01, "alpha": 1.0}  # settings of activations that a name does not tell


@dataclass(frozen=True)
class Override:
    """One setting on some modules.

    Attributes:
        setting: `eps` or `act`.
        value: a number, or timm's name of an activation.
        modules: their paths; `#` stands for any one index, `*` alone for every module that has the setting.
    """

    setting: str
    value: float | str
    modules: tuple[str, ...] = ("*",)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `overrides_from_json` reads it back."""
        return {"set": self.setting, "to": self.value, "on": list(self.modules)}


def overrides_from_json(data: object) -> tuple[Override, ...]:
    """Read a list of what `Override.to_json` wrote; nothing for None.

    Raises:
        CheckpointError: malformed, or a setting that this release does not know.
    """
    if data is None:
        return ()
    if not isinstance(data, Sequence) or isinstance(data, str) or len(data) > _MOST:
        raise CheckpointError("overrides are damaged: expected a list")
    return tuple(map(_from_json, data))


def _from_json(item: object) -> Override:
    if not isinstance(item, dict) or set(item) != {"set", "to", "on"}:
        raise CheckpointError("an override is damaged: expected set, to and on")
    setting, value, modules = item["set"], item["to"], item["on"]
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")
    if not ((setting in NUMBERS and number) or (setting == ACTIVATION and value in _ACTIVATIONS.values())):
        raise CheckpointError(f"an override is damaged, or newer than this release: {setting!r} to {value!r}")
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules) or len(modules) > _MOST:
        raise CheckpointError(f"the override of {setting} is damaged: expected a list of module paths")
    return Override(setting, float(value) if number else value, tuple(modules))


def apply_overrides(model: nn.Module, overrides: Sequence[Override]) -> None:
    """Put settings on the modules of `model`, in place.

    Raises:
        CheckpointError: a pattern that matches no module with that setting.
    """
    for override in overrides:
        having = dict(_having(model, override.setting))
        for pattern in override.modules:
            matching = [name for name in having if _matches(pattern, name)]
            if not matching:
                raise CheckpointError(f"no module {pattern!r} with a setting {override.setting!r} in this model")
            for name in matching:
                _set(model, name, override)


def find_overrides(model: nn.Module, skeleton: nn.Module) -> tuple[Override, ...]:
    """What `model` has set differently from `skeleton`, of the same structure, and an override can say."""
    found = []
    for setting in (*NUMBERS, ACTIVATION):
        built, current = dict(_having(skeleton, setting)), dict(_having(model, setting))
        changed: dict[float | str, list[str]] = defaultdict(list)
        for name, value in current.items():
            if name in built and built[name] != value:
                changed[value].append(name)
        found += [Override(setting, value, _compact(names, current)) for value, names in changed.items()]
    return tuple(found)


def _having(model: nn.Module, setting: str) -> Iterator[tuple[str, float | str]]:
    """Paths of the modules that have a setting, with its value."""
    for name, module in model.named_modules():
        if setting == ACTIVATION:
            value: object = activation_name(module)
        else:
            value = vars(module).get(setting)
        if isinstance(value, str) or (isinstance(value, float) and 0 <= value < float("inf")):
            yield name, value


def activation_name(module: nn.Module) -> str | None:
    """timm's name of an activation module, None for any other module."""
    if isinstance(module, nn.GELU) and module.approximate == "tanh":
        return "gelu_tanh"
    own = vars(module)
    if not type(module).__module__.startswith(("torch.nn", "timm.layers")):
        return None
    if any(name in own and own[name] != usual for name, usual in _PLAIN.items()):
        return None
    return _ACTIVATIONS.get(type(module).__name__)


def _set(model: nn.Module, name: str, override: Override) -> None:
    if override.setting == ACTIVATION:
        model.set_submodule(name, create_act_layer(override.value))
    else:
        setattr(model.get_submodule(name), override.setting, override.value)


def _compact(names: list[str], current: Mapping[str, float | str]) -> tuple[str, ...]:
    """Paths, with their numbers as `#` where every path of that pattern has the same value."""
    values = defaultdict(set)
    for name, value in current.items():
        values[_pattern(name)].add(value)
    return tuple(dict.fromkeys(_pattern(name) if len(values[_pattern(name)]) == 1 else name for name in names))


def _pattern(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "#", name)


def _matches(pattern: str, name: str) -> bool:
    return pattern in ("*", name, _pattern(name))
