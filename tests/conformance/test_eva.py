"""Rotary embeddings and bias-free keys: EVA, EVA-02, DINOv3, `AttentionRope`; relative position biases: BEiT."""

from tests.conformance.suite import Case, ConformanceSuite

SMALL = {"img_size": 56, "embed_dim": 48, "depth": 3, "num_heads": 4}
PATCH16 = {**SMALL, "img_size": 64}


class TestEva(ConformanceSuite):
    cases = (
        Case("eva02", "eva02_tiny_patch14_224", SMALL, size=56, other_size=84, compiler="aot_eager"),
        Case("eva02_inner_norms", "eva02_base_patch14_224", SMALL, size=56, other_size=84, stage="broad"),
        Case("dinov3", "vit_small_patch16_dinov3", PATCH16),
        Case("rope_mixed", "vit_small_patch16_rope_mixed_224", PATCH16, compiler="aot_eager", stage="broad"),
        Case("qk_norm", "vit_small_patch16_dinov3", {**PATCH16, "qk_norm": True}, stage="broad"),
        Case("pe_core", "vit_pe_core_tiny_patch16_384", PATCH16, stage="broad"),
    )


class TestBeit(ConformanceSuite):
    cases = (
        Case("beit", "beit_base_patch16_224", PATCH16, compiler="aot_eager"),
        Case("shared_bias", "beit_base_patch16_224", {**PATCH16, "use_shared_rel_pos_bias": True}, stage="broad"),
    )
