"""What a model is made of, as far as surgery needs to know, and what a family's adapter has to tell."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from vitcompact.layers.parts import AttentionParts
from vitcompact.plans.schema import Skipped
from vitcompact.plans.specs import LayerKind


@dataclass(frozen=True)
class AttentionSite:
    """One attention layer that can be compacted.

    Attributes:
        name: module path of the attention layer.
        block: module path of the residual block around it.
        scale: path of the LayerScale right after it (a module or a bare parameter of the block), or None.
        norm: module path of the norm before it, whose input is the residual stream, or None.
        family: name of the adapter that knows its parts.
        channel_dim: axis of the channels of its output, -1 or (on feature maps) 1.
        target: path of the part of the original layer whose output its output projection makes, where more follows in
            the layer (upsampling); None: the layer's own output.
    """

    kind: ClassVar[LayerKind] = "attention"
    name: str
    block: str
    scale: str | None
    norm: str | None
    family: str
    channel_dim: int = -1
    target: str | None = None

    @property
    def tap(self) -> str:
        """Path of the original's module whose output is what the solved layer has to give."""
        return self.target or self.name


@dataclass(frozen=True)
class FfnSite:
    """One FFN whose hidden-to-output matrix can be compacted.

    Attributes:
        name: module path of the FFN.
        output: module path of its hidden-to-output layer, a linear layer or a 1x1 convolution.
        block: module path of the residual block around it.
        scale: path of the LayerScale right after it (a module or a bare parameter of the block), or None.
        norm: module path of the norm before it, whose input is the residual stream, or None.
        channel_dim: axis of the channels of its input and output, -1 or (on feature maps) 1.
    """

    kind: ClassVar[LayerKind] = "ffn"
    name: str
    output: str
    block: str
    scale: str | None
    norm: str | None
    channel_dim: int = -1

    @property
    def tap(self) -> str:
        """Path of the original's module whose output is what the solved layer has to give."""
        return self.name


Site = AttentionSite | FfnSite


@dataclass(frozen=True)
class Anatomy:
    """The attention layers and FFNs of a model in forward order, and what is left alone with the reason."""

    attention: tuple[AttentionSite, ...]
    ffn: tuple[FfnSite, ...]
    skipped: tuple[Skipped, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Attention layers, then FFNs."""
        return (*self.attention, *self.ffn)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Module paths of the residual blocks that hold a site, in forward order."""
        return tuple(dict.fromkeys([*(s.block for s in self.attention), *(s.block for s in self.ffn)]))


class AttentionFamily(ABC):
    """An adapter for one attention class of timm: where its parts are."""

    name: str
    attention: type[nn.Module]
    known_parts: frozenset[str]
    """Names of the children and parameters that `parts` accounts for; any other part is refused."""
    channel_dim: int = -1
    """Axis of the channels of the layer's input and output: -1, or 1 where blocks work on feature maps."""

    def channel_dim_of(self, module: nn.Module) -> int:
        """The same, of a layer whose class knows both."""
        return self.channel_dim

    def target_of(self, module: nn.Module) -> str | None:
        """Name of the part whose output the output projection makes, where more follows; None: nothing does."""
        return None

    def matches(self, module: nn.Module) -> bool:
        """Whether `module` is of this family: the class itself, or a subclass that did not change its forward."""
        return isinstance(module, self.attention)

    def refuse(self, module: nn.Module) -> str | None:
        """Why this layer cannot be compacted although its class is known, or None.

        A subclass with a forward of its own and any part that the adapter has never seen are refused by name:
        dropping them silently would change the model.
        """
        if type(module).forward is not self.attention.forward:
            return f"{type(module).__name__} is a {self.attention.__name__} with a forward of its own"
        parts = {name for name, _ in module.named_children()}
        parts |= {name for name, _ in module.named_parameters(recurse=False)}
        parts |= {name for name, _ in module.named_buffers(recurse=False)}
        unknown = sorted(parts - self.known_parts)
        return f"unknown part {', '.join(unknown)} in {type(module).__name__}" if unknown else None

    @abstractmethod
    def parts(self, module: nn.Module) -> AttentionParts:
        """The parts of an attention layer that `refuse` accepts."""
