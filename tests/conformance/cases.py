"""Small models of attention classes beyond the plain ones, one or two a class."""

from __future__ import annotations

from typing import Any

from tests.conformance import small_models
from tests.conformance.suite import Case

SMALL: dict[str, Any] = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 4}
COATNET = {"img_size": 64, "depths": (1, 1, 1, 1), "embed_dim": (16, 64, 64, 64), "stem_width": 8}
MAXVIT = {**COATNET, "embed_dim": (32, 32, 32, 64)}
LEVIT = {"img_size": 64, "embed_dim": (32, 48, 64), "num_heads": (2, 3, 4), "depth": (1, 1, 1)}
SWIN_CR = {"img_size": 64, "window_size": 4, "embed_dim": 32, "depths": (2, 1), "num_heads": (2, 4)}
HIERA = {"img_size": (64, 64), "mask_unit_size": (4, 4), "embed_dim": 16, "num_heads": 2, "stages": (1, 1, 1, 1)}
SAM2 = {"embed_dim": 16, "num_heads": 2, "stages": (1, 1, 2, 1), "global_att_blocks": (3,)}
SAM2 |= {"window_spec": (4, 4, 4, 4), "global_pos_size": (4, 4)}
SAM = {**SMALL, "window_size": 2, "global_attn_indexes": (1,), "neck_chans": 32}
DAVIT = {"depths": (1, 1), "embed_dims": (32, 64), "num_heads": (2, 4), "window_size": 4}
TINY_VIT = {"embed_dims": (16, 32, 64, 64), "depths": (1, 1, 1, 1), "num_heads": (2, 2, 4, 4)}
TNT = {"img_size": 64, "embed_dim": 48, "inner_dim": 16, "depth": 2, "num_heads_inner": 2, "num_heads_outer": 4}
EFFICIENTFORMER_V2 = {"depths": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 48), "num_vit": 0}
EFFICIENTFORMER = {"depths": (1, 1, 1, 2), "embed_dims": (8, 16, 16, 64), "num_vit": 1}


def _case(id: str, name: str, kwargs: dict[str, Any] | None = None, **options: Any) -> Case:
    options = {"other_size": None, "checkpointing": False, "features": (0, 1)} | options
    size = options.get("size", 64)
    always = {"drop_path_rate": 0.0, "pretrained_cfg_overlay": {"input_size": (3, size, size)}}
    given = {**always, **(kwargs or {})}
    return Case(id, name, {key: value for key, value in given.items() if value is not None}, **options)


CASES: tuple[Case, ...] = (
    _case("coatnet", "coatnet_rmlp_nano_rw_224", COATNET, stage="sweep"),
    _case("maxvit", "maxvit_rmlp_pico_rw_256", MAXVIT),
    _case("maxvit_tf", "maxvit_tiny_tf_224", MAXVIT, stage="sweep"),
    _case("levit", "levit_128s", LEVIT),
    _case("levit_conv", "levit_conv_128s", LEVIT, stage="sweep"),
    _case("swin_cr", "swinv2_cr_tiny_224", SWIN_CR, stage="broad"),
    _case("relpos_mlp", "vit_relpos_small_patch16_224", SMALL, stage="sweep"),
    _case("relpos_shared", "vit_srelpos_small_patch16_224", SMALL, stage="sweep"),
    _case("relpos_table", "vit_relpos_base_patch16_224", {**SMALL, "rel_pos_type": "bias"}),
    _case("relpos_cls", "vit_relpos_medium_patch16_cls_224", SMALL, stage="sweep"),
    _case("volo", small_models.vitcompact_small_volo.__name__, stage="broad"),
    _case("fastvit", "fastvit_sa12", {"layers": (1, 1, 1, 1), "embed_dims": (8, 16, 32, 64)}),
    _case("davit", "davit_tiny", DAVIT, stage="broad"),
    _case("hiera", "hiera_tiny_224", HIERA, stage="broad"),
    _case("sam2", "sam2_hiera_tiny", {**SAM2}, stage="broad"),
    _case("sam", "samvit_base_patch16", SAM),
    _case("nest", small_models.vitcompact_small_nest.__name__, stage="broad"),
    _case("gcvit", small_models.vitcompact_small_gcvit.__name__, stage="broad"),
    _case("tiny_vit", "tiny_vit_5m_224", {**TINY_VIT, "window_sizes": (4, 4, 4, 4)}),
    _case("caformer", small_models.vitcompact_small_caformer.__name__, stage="broad"),
    _case("convit", "convit_tiny", {**SMALL, "depth": 3, "local_up_to_layer": 1}, stage="broad"),
    _case("tnt", "tnt_s_patch16_224", TNT, stage="broad"),
)
LOWFORMER = {"width_list": (8, 8, 16, 64, 128), "depth_list": (0, 1, 1, 1, 1), "head_widths": (32, 32)}
STAGES_OF_16 = {"layers": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32)}
CASES += (
    _case("lowformer", "lowformer_b0", LOWFORMER, stage="broad"),
    _case("cpubone", "cpubone_nano", LOWFORMER, stage="sweep"),
    _case("mvit", small_models.vitcompact_small_mvit.__name__, stage="broad"),
    _case("efficientformer_v2", "efficientformerv2_s0", {**EFFICIENTFORMER_V2, "img_size": 64}),
)
SHARED = {**SMALL, "attn_type": "rope", "qkv_fused": False, "num_kv_heads": 2}
CASES += (
    _case("botnet", small_models.vitcompact_small_botnet.__name__, features=(0, 1)),
    _case("halonet", small_models.vitcompact_small_halonet.__name__, features=(0, 1), stage="sweep"),
    _case("mobilenet_hybrid", small_models.vitcompact_small_hybrid.__name__, features=(0, 1)),
    _case("differential", "vit_dlittle_patch16_reg1_gap_256", {**SMALL, "qk_norm": True}),
    _case("grouped_queries", "vit_small_patch16_rope_224", {**SHARED, "qk_norm": True}),
)
EFFICIENTVIT = {"widths": (8, 16, 16, 32, 32), "depths": (1, 1, 1, 1, 1), "head_dim": 8, "head_widths": (32, 32)}
FFN_CASES: tuple[Case, ...] = (
    _case("swiftformer", "swiftformer_xs", STAGES_OF_16),
    _case(
        "repvit",
        "repvit_m0_9",
        {"embed_dim": (16, 16, 32, 32), "depth": (1, 1, 1, 1), "drop_path_rate": None},
        stage="sweep",
    ),
    _case("fasternet", "fasternet_t0", {"embed_dim": 32, "depths": (1, 1, 1, 1)}, stage="sweep"),
    _case("convnext_v2", "convnextv2_atto", {"depths": (1, 1, 1, 1), "dims": (16, 16, 32, 32)}, stage="sweep"),
    _case("parallel", "vit_base_patch16_xp_224", SMALL),
    _case("parallel_differential", "vit_dpwee_patch16_reg1_gap_256", SMALL, stage="sweep"),
    _case("efficientvit_mit", "efficientvit_b0", {**EFFICIENTVIT, "drop_path_rate": None}),
    _case("inception_next", "inception_next_atto", {"depths": (1, 1, 1, 1), "dims": (16, 16, 32, 32)}, stage="sweep"),
)
SLOW_FFN_CASES: tuple[Case, ...] = (
    _case("efficientvit", "efficientvit_m0", {"drop_path_rate": None, "img_size": 64}),
    _case("shvit", "shvit_s1", {"drop_path_rate": None}),
    _case("iformer", "iformer_t"),
    _case("efficientvim", "efficientvim_m1"),
)
"""FFN classes beside attention that is left alone; the slow ones are models whose sizes are fixed."""
SLOW_CASES: tuple[Case, ...] = (_case("efficientformer", "efficientformer_l1", EFFICIENTFORMER, size=224),)
"""Classes whose biases are for feature maps of one size, at images larger than fast tests take."""
