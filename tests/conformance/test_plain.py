"""Models whose blocks use timm.layers.Attention."""

from tests.conformance.suite import Case, ConformanceSuite

SMALL = {"embed_dim": 48, "depth": 3, "img_size": 56}
FOUR_HEADS = {**SMALL, "num_heads": 4}


class TestPlainAttention(ConformanceSuite):
    quick = True
    cases = (
        Case("deit_tiny", "deit_tiny_patch16_224", {"img_size": 64, "depth": 3}, compiler="aot_eager"),
        Case("distilled", "deit_tiny_distilled_patch16_224", {"img_size": 64, "depth": 3}, stage="broad"),
        Case("test_vit", "test_vit", {"img_size": 64}, stage="sweep"),
        Case("test_vit2", "test_vit2", {"img_size": 64}, stage="broad"),
        Case("test_vit3", "test_vit3", {"img_size": 64}, stage="broad"),
        Case("test_vit4", "test_vit4", {"img_size": 64}, stage="sweep"),
        Case("swiglu_packed", "vit_giant_patch14_dinov2", FOUR_HEADS, size=56, other_size=84, stage="broad"),
        Case("swiglu", "aimv2_large_patch14_224", FOUR_HEADS, size=56, other_size=84, compiler="aot_eager"),
        Case("registers", "vit_small_patch14_reg4_dinov2", {**SMALL, "num_heads": 6}, size=56, other_size=84),
        Case("qk_norm", "test_vit", {"img_size": 64, "qk_norm": True, "num_heads": 4}),
        Case("inner_norms", "beit3_base_patch16_224", {**FOUR_HEADS, "img_size": 64}),
        Case("parallel_branches", "vit_small_patch16_18x2_224", {**FOUR_HEADS, "img_size": 64}),
        Case("post_norm", "vit_base_patch16_rpn_224", {**FOUR_HEADS, "img_size": 64}),
        Case("clip_tower", "vit_base_patch32_clip_224", {**FOUR_HEADS, "img_size": 64}, stage="broad"),
    )
