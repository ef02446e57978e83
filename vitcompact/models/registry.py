"""Which families there are, and how a model's attention layers and FFNs are found.

A new attention family is one file beside this one and one line in `FAMILIES`.
"""

from __future__ import annotations

from dataclasses import replace

from timm.layers import AttentionPoolLatent, GlobalContext, LayerScale, LayerScale2d, RelPosMlp
from timm.layers.ml_decoder import TransformerDecoderLayerOptimal
from torch import nn

from vitcompact.errors import NothingToCompactError
from vitcompact.layers.pointwise import channel_dim
from vitcompact.models.attention2d import MapAttention, MultiQueryMapAttention
from vitcompact.models.attention_classes import attention_class, is_unclassified
from vitcompact.models.base import Anatomy, AttentionFamily, AttentionSite, FfnSite
from vitcompact.models.beit import BeitAttention
from vitcompact.models.byoanet import BottleneckAttention, HaloAttention
from vitcompact.models.changed import users_own
from vitcompact.models.convit import ConvitAttention, ConvitPositionalAttention
from vitcompact.models.davit import DaVitAttention
from vitcompact.models.diff import DifferentialAttention
from vitcompact.models.efficientformer import EfficientFormerDownsampling
from vitcompact.models.eva import Eva, RopeAttention
from vitcompact.models.fastvit import FastVitAttention
from vitcompact.models.ffn import FfnClass, ffn_class, refuse_ffn
from vitcompact.models.gcvit import GcVitAttention
from vitcompact.models.hiera import HieraAttention, Sam2Attention
from vitcompact.models.levit import LevitAttention, LevitDownsampling
from vitcompact.models.lowformer import CpuBoneAttention, LowFormerAttention
from vitcompact.models.maxxvit import MaxxVitMapAttention, MaxxVitWindowAttention
from vitcompact.models.metaformer import MetaFormerAttention
from vitcompact.models.mvit import MvitAttention
from vitcompact.models.nest import NestAttention
from vitcompact.models.nextvit import NextVitAttention
from vitcompact.models.pvt import PvtAttention, TwinsGlobalAttention
from vitcompact.models.relpos import RelPosVitAttention
from vitcompact.models.sam import SamAttention
from vitcompact.models.swin import SwinAttention, SwinV2Attention
from vitcompact.models.swin_cr import SwinCrAttention
from vitcompact.models.tiny_vit import EfficientFormerAttention, TinyVitAttention
from vitcompact.models.tnt import TntAttention
from vitcompact.models.torch_attention import TorchAttention
from vitcompact.models.twins import TwinsLocalAttention
from vitcompact.models.visformer import VisformerAttention
from vitcompact.models.vit import PlainAttention
from vitcompact.models.volo import VoloAttention
from vitcompact.plans.schema import Skipped

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
    LowFormerAttention(),
    CpuBoneAttention(),
    MvitAttention(),
    EfficientFormerDownsampling(),
    BottleneckAttention(),
    HaloAttention(),
    MultiQueryMapAttention(),
    MapAttention(),
    DifferentialAttention(),
    ConvitPositionalAttention(),
    TorchAttention(),
)

POOLING = (AttentionPoolLatent, TransformerDecoderLayerOptimal)
"""Attention pooling has learned queries and no block around it: it is left alone."""

NO_FFN = (RelPosMlp, GlobalContext)
"""What holds an `Mlp` that is no FFN: it makes position biases from coordinates, or gates channels by one token."""


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
                attention.append(_attention_site(model, name, family))
            else:
                skipped.append(Skipped(name, reason))
        elif name:
            if (kind := attention_class(module)) is not None:
                skipped.append(Skipped(name, f"{type(module).__name__}: {kind.reason}"))
            elif is_unclassified(module):
                skipped.append(Skipped(name, f"{type(module).__name__}: an attention class that is not known yet"))
            if (known := ffn_class(module)) is not None:
                inside.append(f"{name}.{known.site}." if known.site else f"{name}.")
                found = _ffn_site(model, name, known)
                if isinstance(found, FfnSite):
                    ffn.append(found)
                else:
                    skipped.append(found)
    if not attention and not ffn:
        reasons = "; ".join(sorted({item.reason for item in skipped})) or "it has no attention layer and no FFN"
        raise NothingToCompactError(f"nothing in {type(model).__name__} can be compacted: {reasons}")
    blocks = {site.block for site in attention} | {site.block for site in ffn}
    outer = {block: _outermost(block, blocks) for block in blocks}
    return Anatomy(
        tuple(replace(site, block=outer[site.block]) for site in attention),
        tuple(replace(site, block=outer[site.block]) for site in ffn),
        tuple(skipped),
    )


def _outermost(block: str, blocks: set[str]) -> str:
    """The largest of the blocks around a block: the walk goes from block to block, not into them."""
    return min((other for other in blocks if f"{block}.".startswith(f"{other}.")), key=len)


def _attention_site(model: nn.Module, name: str, family: AttentionFamily) -> AttentionSite:
    module = model.get_submodule(name)
    axis, target = family.channel_dim_of(module), family.target_of(module)
    if target is None:
        return AttentionSite(name, *_around(model, name), family.name, axis)
    return AttentionSite(name, _block(model, name), None, None, family.name, axis, f"{name}.{target}")


def _ffn_site(model: nn.Module, name: str, known: FfnClass) -> FfnSite | Skipped:
    """The site of an FFN, or why it is none."""
    site, output = f"{name}.{known.site}" if known.site else name, f"{name}.{known.output}"
    reason = refuse_ffn(model.get_submodule(name), known) or users_own(model.get_submodule(site))
    if reason is not None:
        return Skipped(name, reason)
    return FfnSite(site, output, *_around(model, site), channel_dim(model.get_submodule(output)))


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
    if scale is None and (bare := beside(nn.Parameter, f"gamma_{number}")) is not None:
        scale = bare if getattr(holder, f"gamma_{number}").dim() == 1 else None
    return _block(model, name), scale, beside(nn.Module, f"norm{number}", "norm")
