"""FFNs: where each class of timm ends in a linear map, and which layers produce its hidden units."""

from __future__ import annotations

from dataclasses import dataclass

from timm.layers import ConvMlp, GatedMlp, GlobalResponseNormMlp, GluMlp, Mlp, SwiGLU
from timm.models import (
    cpubone,
    efficientformer_v2,
    efficientvim,
    efficientvit_mit,
    efficientvit_msra,
    fasternet,
    fastvit,
    gemma4_vit,
    iformer,
    inception_next,
    levit,
    lowformer,
    repvit,
    shvit,
    swiftformer,
    tiny_vit,
    visformer,
    vision_transformer,
    vitamin,
)
from timm.models.pvt_v2 import MlpWithDepthwiseConv
from torch import nn

from vitcompact.layers.pointwise import is_pointwise_map


@dataclass(frozen=True)
class FfnClass:
    """One FFN class of timm whose forward ends in a linear map of the hidden units, then dropout at most.

    Attributes:
        cls: the class; a subclass with a forward of its own is another one.
        output: path of the hidden-to-output layer: linear or a 1x1 convolution, with or without a batch norm behind.
        hidden: the layers with one output (or, packed, several) per hidden unit, in forward order.
        fixed: why hidden units cannot be taken out one by one; None: they can.
        site: path of the module whose output the linear map makes, where that is not the FFN itself.
    """

    cls: type[nn.Module]
    output: str = "fc2"
    hidden: tuple[str, ...] = ("fc1",)
    fixed: str | None = None
    site: str = ""


MIXED = "its hidden units are mixed before the output layer"
GATED = "its hidden units gate each other"
FFNS: tuple[FfnClass, ...] = (
    FfnClass(Mlp),
    FfnClass(GluMlp),
    FfnClass(SwiGLU, hidden=("fc1_g", "fc1_x")),
    FfnClass(ConvMlp),
    FfnClass(MlpWithDepthwiseConv, hidden=("fc1", "dwconv")),
    FfnClass(GlobalResponseNormMlp, fixed=MIXED),
    FfnClass(GatedMlp, fixed=GATED),
    FfnClass(levit.LevitMlp, "ln2", ("ln1",)),
    FfnClass(fastvit.ConvMlp),
    FfnClass(tiny_vit.NormMlp),
    FfnClass(vitamin.GeGluMlp, "w2", ("w0", "w1")),
    FfnClass(gemma4_vit.Gemma4GatedMlp, "down_proj.linear", ("gate_proj.linear", "up_proj.linear")),
    FfnClass(swiftformer.Mlp),
    FfnClass(inception_next.ConvMlp),
    FfnClass(efficientformer_v2.ConvMlpWithNorm, fixed=MIXED),
    FfnClass(efficientvit_msra.ConvMlp, "pw2", ("pw1",)),
    FfnClass(shvit.FFN, "pw2", ("pw1",)),
    FfnClass(repvit.RepVitMlp, "conv2", ("conv1",)),
    FfnClass(visformer.SpatialMlp, "conv3", ("conv1",)),
    FfnClass(efficientvim.FFN, fixed=MIXED),
    FfnClass(iformer.FFN, "mixer.module.2", fixed=MIXED, site="mixer.module"),
    FfnClass(fasternet.MLPBlock, "mlp.3", fixed=MIXED, site="mlp"),
    FfnClass(lowformer.LowFormerBlock, "mlp.main.3", fixed=MIXED, site="mlp.main"),
    FfnClass(cpubone.CPUBoneBlock, "total.0.1.main.3", fixed=MIXED, site="total.0.1.main"),
    FfnClass(
        efficientvit_mit.EfficientVitBlock,
        "local_module.main.point_conv.conv",
        fixed=MIXED,
        site="local_module.main.point_conv.conv",
    ),
    FfnClass(vision_transformer.ParallelScalingBlock, "mlp_out_proj", fixed=MIXED, site="mlp_out_proj"),
    FfnClass(vision_transformer.ParallelScalingBlock, "out_proj", fixed=MIXED, site="out_proj"),
    FfnClass(vision_transformer.DiffParallelScalingBlock, "out_proj", fixed=MIXED, site="out_proj"),
)
"""The classes in the order in which a module is compared with them."""

TOKENWISE: tuple[type[nn.Module], ...] = (Mlp, GluMlp, SwiGLU, ConvMlp, MlpWithDepthwiseConv)
"""FFNs of plain ViTs, of which token merging knows that they treat tokens one by one."""


def ffn_class(module: nn.Module) -> FfnClass | None:
    """The entry for a module's class, or None where it is no FFN that is known.

    Of several, the first whose output layer there is.
    """
    entries = [known for known in FFNS if isinstance(module, known.cls)]
    return next((known for known in entries if _child(module, known.output) is not None), next(iter(entries), None))


def _child(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        found = getattr(module, name, None)
        if not isinstance(found, nn.Module):
            return None
        module = found
    return module


def refuse_ffn(module: nn.Module, known: FfnClass) -> str | None:
    """Why the output layer of an FFN cannot be compacted although its class is known, or None."""
    if type(module).forward is not known.cls.forward:
        return f"{type(module).__name__} is a {known.cls.__name__} with a forward of its own"
    layer = module
    for name in known.output.split("."):
        found = getattr(layer, name, None)
        if not isinstance(found, nn.Module):
            return f"{type(module).__name__} has its output layer elsewhere here (no {known.output})"
        if getattr(found, "use_clipped", False):
            return "its linear layers clip what comes in and goes out"
        layer = found
    if not is_pointwise_map(layer):
        return f"its output layer is a {type(layer).__name__} that is no linear map of the channels"
    return None


def hidden_layers(ffn: nn.Module) -> tuple[str, ...]:
    """Names of the layers of `ffn` that have one output (or, packed, several) per hidden unit, in forward order."""
    known = ffn_class(ffn)
    names = () if known is None else known.hidden
    return names


def fixed_hidden(ffn: nn.Module) -> str | None:
    """Why hidden units of `ffn` cannot be taken out one by one, or None."""
    known = ffn_class(ffn)
    if known is None or known.fixed:
        return MIXED if known is None else known.fixed
    first = next(iter(dict(ffn.named_children())))
    norm = getattr(ffn, "norm", None)
    if not isinstance(norm, nn.Identity | None) and first != "norm":  # a norm in front is one of the tokens
        return "its hidden units are normalised"
    if getattr(ffn, "conv2", None) is not None and "conv2" not in (known.output, *known.hidden):
        return MIXED
    for name in known.hidden:
        layer = ffn.get_submodule(name)
        if not (is_pointwise_map(layer) or is_depthwise(layer)):
            return f"its {name} is neither a linear layer nor a depthwise convolution"
    return None


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a layer is a convolution of each channel by itself."""
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels
