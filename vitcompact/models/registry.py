"""Which families there are, and how a model's attention layers and FFNs are found.

A new attention family is one file beside this one and one line in `FAMILIES`.
"""

from __future__ import annotations

from timm.layers import AttentionPoolLatent, ConvMlp, GluMlp, LayerScale, LayerScale2d, Mlp, RelPosMlp, SwiGLU
from timm.models.pvt_v2 import MlpWithDepthwiseConv
from torch import nn

from vitcompact.errors import NothingToCompactError
from vitcompact.layers.pointwise import channel_dim, is_pointwise_map
from vitcompact.models.attention_classes import attention_class
from vitcompact.models.base import Anatomy, AttentionFamily, AttentionSite, FfnSite
from vitcompact.models.beit import BeitAttention
from vitcompact.models.changed import users_own
from vitcompact.models.convit import ConvitAttention
from vitcompact.models.davit import DaVitAttention
from vitcompact.models.eva import Eva, RopeAttention
from vitcompact.models.fastvit import FastVitAttention
from vitcompact.models.gcvit import GcVitAttention
from vitcompact.models.hiera import HieraAttention, Sam2Attention
from vitcompact.models.levit import LevitAttention, LevitDownsampling
from vitcompact.models.maxxvit import MaxxVitMapAttention, MaxxVitWindowAttention
from vitcompact.models.metaformer import MetaFormerAttention
from vitcompact.models.nest import NestAttention
from vitcompact.models.nextvit import NextVitAttention
from vitcompact.models.pvt import PvtAttention, TwinsGlobalAttention
from vitcompact.models.relpos import RelPosVitAttention
from vitcompact.models.sam import SamAttention
from vitcompact.models.swin import SwinAttention, SwinV2Attention
from vitcompact.models.swin_cr import SwinCrAttention
from vitcompact.models.tiny_vit import EfficientFormerAttention, TinyVitAttention
from vitcompact.models.tnt import TntAttention
from vitcompact.models.twins import TwinsLocalAttention
from vitcompact.models.visformer import VisformerAttention
from vitcompact.models.vit import PlainAttention
from vitcompact.models.volo import VoloAttention
from vitcompact.plan.schema import Skipped

FAMILIES: tuple[AttentionFamily, ...] = (
    PlainAttention(),
    PvtAttention(),
    TwinsGlobalAttention(),
    TwinsLocalAttention(),
    NextVitAttention(),
    SwinAttention(),
    SwinV2Attention(),
    Eva(),
    RopeAttention(),
    BeitAttention(),
    VisformerAttention(),
    MaxxVitWindowAttention(),
    MaxxVitMapAttention(),
    LevitAttention(),
    LevitDownsampling(),
    SwinCrAttention(),
    RelPosVitAttention(),
    VoloAttention(),
    FastVitAttention(),
    DaVitAttention(),
    HieraAttention(),
    Sam2Attention(),
    SamAttention(),
    NestAttention(),
    GcVitAttention(),
    TinyVitAttention(),
    EfficientFormerAttention(),
    MetaFormerAttention(),
    ConvitAttention(),
    TntAttention(),
)

FFN_CLASSES: tuple[type[nn.Module], ...] = (Mlp, GluMlp, SwiGLU, ConvMlp, MlpWithDepthwiseConv)
"""FFNs whose forward ends in `fc2`, linear or a 1x1 convolution, then dropout (timm/layers/mlp.py, pvt_v2.py)."""

POOLING = (AttentionPoolLatent,)
"""Attention pooling has one learned query and no block around it: it is left alone."""

NO_FFN = (RelPosMlp,)
"""What holds an `Mlp` that is no FFN: it makes position biases from coordinates."""


def family_of(module: nn.Module) -> AttentionFamily | None:
    """The adapter for an attention layer, or None where no family knows its class."""
    return next((family for family in FAMILIES if family.matches(module)), None)


def family_named(name: str) -> AttentionFamily:
    """The adapter registered under `name`."""
    return next(family for family in FAMILIES if family.name == name)


def inspect(model: nn.Module) -> Anatomy:
    """Find what can be compacted.

    Blocks are walked, not module types alone: the MLP inside an attention pooling head is not an FFN of the trunk.

    Raises:
        NothingToCompactError: neither an attention layer nor an FFN can be compacted.
    """
    attention: list[AttentionSite] = []
    ffn: list[FfnSite] = []
    skipped: list[Skipped] = []
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in inside):
            continue
        if isinstance(module, POOLING):
            inside.append(f"{name}.")
            skipped.append(Skipped(name, f"{type(module).__name__} pools with one query; it is no trunk layer"))
        elif isinstance(module, NO_FFN):
            inside.append(f"{name}.")
        elif name and (family := family_of(module)) is not None:
            inside.append(f"{name}.")
            reason = family.refuse(module) or users_own(module)
            if reason is None and family.parts(module).num_heads < 2:
                reason = "one head has no other to be hallucinated from"
            if reason is None:
                attention.append(AttentionSite(name, *_around(model, name), family.name, family.channel_dim_of(module)))
            else:
                skipped.append(Skipped(name, reason))
        elif name and (known := attention_class(module)) is not None:
            skipped.append(Skipped(name, f"{type(module).__name__}: {known.reason}"))
        elif isinstance(module, FFN_CLASSES) and name:
            inside.append(f"{name}.")
            reason = _refuse_ffn(module) or users_own(module)
            if reason is None:
                layout = channel_dim(model.get_submodule(f"{name}.fc2"))
                ffn.append(FfnSite(name, f"{name}.fc2", *_around(model, name), layout))
            else:
                skipped.append(Skipped(name, reason))
    if not attention and not ffn:
        reasons = "; ".join(sorted({item.reason for item in skipped})) or "it has no attention layer and no FFN"
        raise NothingToCompactError(f"nothing in {type(model).__name__} can be compacted: {reasons}")
    return Anatomy(tuple(attention), tuple(ffn), tuple(skipped))


def _refuse_ffn(module: nn.Module) -> str | None:
    known = next(cls for cls in FFN_CLASSES if isinstance(module, cls))
    if type(module).forward is not known.forward:
        return f"{type(module).__name__} is a {known.__name__} with a forward of its own"
    fc2 = module.fc2
    assert isinstance(fc2, nn.Module)
    if not is_pointwise_map(fc2):
        return f"its output layer is a {type(fc2).__name__} that is no linear map of the channels"
    return None


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _block(model: nn.Module, name: str) -> str:
    """The residual block around a layer: its parent, or the one above a plain `nn.Sequential` branch."""
    parent = _parent(name)
    while isinstance(model.get_submodule(parent), nn.Sequential | nn.ModuleList) and parent:
        parent = _parent(parent)
    return parent


def _around(model: nn.Module, name: str) -> tuple[str, str | None, str | None]:
    """The block of a layer, the LayerScale right after it and the norm right before it, by timm's naming.

    timm's blocks hold `norm1, attn, ls1` and `norm2, mlp, ls2`, or bare parameters `gamma_1` and `gamma_2`; parallel
    branches hold `norm, attn or mlp, ls`.
    """
    parent, _, child = name.rpartition(".")
    holder = model.get_submodule(parent)
    number = {"attn": "1", "e_mhsa": "1", "mlp": "2"}.get(child, "")

    def beside(kind: type, *names: str) -> str | None:
        found = next((n for n in names if isinstance(getattr(holder, n, None), kind)), None)
        return f"{parent}.{found}" if found else None

    scale = beside(nn.Module, f"ls{number}", "ls")
    if scale is not None and type(model.get_submodule(scale)) not in (LayerScale, LayerScale2d):
        scale = None
    scale = scale or beside(nn.Parameter, f"gamma_{number}")
    return _block(model, name), scale, beside(nn.Module, f"norm{number}", "norm")
