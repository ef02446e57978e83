"""timm's plain Vision Transformers: one trunk of equal pre-norm blocks over one sequence of tokens."""

from __future__ import annotations

from timm.layers import Attention
from timm.models.eva import Eva
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from vitcompact.errors import UsageError
from vitcompact.layers.attention import CompactAttention
from vitcompact.layers.merging_blocks import PARTS, MergingBlock
from vitcompact.models.ffn import TOKENWISE


def plain_trunk(model: nn.Module) -> tuple[nn.Sequential, int]:
    """The blocks of a plain ViT (converted or not), and the number of tokens before its patch tokens.

    Nothing in such a trunk depends on how many tokens there are or where they are, so tokens can be merged in it.

    Raises:
        UsageError: another architecture, or a part that token merging has never seen.
    """
    if not isinstance(model, VisionTransformer) or (
        type(model).forward_features is not VisionTransformer.forward_features
    ):
        raise _refusal(
            model, "it is not timm's plain VisionTransformer (windows, stages, relative or rotary positions)"
        )
    blocks = model.get_submodule("blocks")
    if not isinstance(blocks, nn.Sequential):
        raise _refusal(model, "its blocks are not one sequence")
    for number, block in enumerate(blocks):
        reason = None if isinstance(block, MergingBlock) else _unknown_block(block)
        if reason is not None:
            raise _refusal(model, f"block {number}: {reason}")
    return blocks, int(model.num_prefix_tokens)


def no_patch_grid(model: nn.Module) -> str | None:
    """Why it is not known where on the image a block's tokens lie, or None: prefix tokens, then patches row by row."""
    known = (VisionTransformer.forward_features, Eva.forward_features)
    if getattr(type(model), "forward_features", None) not in known:
        return f"{type(model).__name__} is no plain ViT with one grid of patches"
    if getattr(model.get_submodule("patch_embed"), "grid_size", None) is None:
        return "its patch embedding has no fixed grid"
    if getattr(model, "dynamic_img_size", False):
        return "its grid changes with the image (dynamic_img_size)"
    drop = getattr(model, "patch_drop", None)
    return None if drop is None or isinstance(drop, nn.Identity) else "it drops patches in training"


def _refusal(model: nn.Module, reason: str) -> UsageError:
    return UsageError(f"tokens of a {type(model).__name__} cannot be merged: {reason}")


def _unknown_block(block: nn.Module) -> str | None:
    """Why tokens cannot be merged in a block, or None."""
    if type(block).forward is not Block.forward:
        return f"{type(block).__name__} is not a plain pre-norm block"
    unknown = sorted({name for name, _ in block.named_children()} ^ set(PARTS))
    if unknown:
        return f"unknown or missing part {', '.join(unknown)}"
    attention, ffn = block.get_submodule("attn"), block.get_submodule("mlp")
    if isinstance(attention, CompactAttention):
        if attention.filter is not None or attention.conv is not None:
            return "its 3x3 filters need the whole grid of tokens (convert without conv and with filter_rank=0)"
    elif type(attention).forward is not Attention.forward:
        return f"{type(attention).__name__} is not plain attention"
    if type(ffn).forward not in [cls.forward for cls in TOKENWISE]:
        return f"{type(ffn).__name__} is not known to treat tokens one by one"
    return None
