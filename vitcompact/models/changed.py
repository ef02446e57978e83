"""What users put on and around layers: hooks, adapters, replaced methods. A rebuilt layer would lose them."""

from __future__ import annotations

from torch import nn

_KNOWN = ("torch.", "timm.", "vitcompact.")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def users_own(layer: nn.Module) -> str | None:
    """What of a layer is its user's and would be lost if the layer were rebuilt, or None."""
    for name, module in layer.named_modules():
        where = f"its {name}" if name else "it"
        if any(_is_foreign(hook) for kind in _HOOKS for hook in getattr(module, kind).values()):
            return f"{where} has hooks, which would be lost: remove them first, and put them on the result"
        if "forward" in vars(module):
            return f"{where} has a forward that was replaced"
        if not type(module).__module__.startswith(_KNOWN):
            return f"{where} is a {type(module).__name__}, an adapter or a class of your own: merge it first"
    return None


def _is_foreign(hook: object) -> bool:
    return not str(getattr(hook, "__module__", "")).startswith("vitcompact.")
