"""Makes timm know the architecture `vitcompact`, whichever of the two packages is imported first.

It is light, so that importing the package is: what builds a model is loaded when timm asks for one.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

if TYPE_CHECKING:
    from torch import nn


def vitcompact(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The entrypoint; see `vitcompact.checkpoint.timm_entry.build` for its arguments."""
    from vitcompact.checkpoint.timm_entry import build

    return build(pretrained, **kwargs)


@when_imported("timm")
def _register(timm: ModuleType) -> None:
    timm.models.register_model(vitcompact)
