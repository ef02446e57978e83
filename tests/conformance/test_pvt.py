"""Models that attend to reduced keys: PVT v2 and Twins."""

from tests.conformance.suite import Case, ConformanceSuite

PVT = {"depths": (1, 1, 2, 1), "embed_dims": (16, 32, 48, 64), "num_heads": (1, 2, 3, 4), "mlp_ratios": (4, 4, 2, 2)}
TWINS = {"depths": (1, 1, 2, 1), "embed_dims": (16, 32, 48, 64), "num_heads": (1, 2, 3, 4)}


class TestPvt(ConformanceSuite):
    cases = (
        Case("pvt_v2", "pvt_v2_b0", PVT, compiler="aot_eager"),
        Case("pvt_v2_linear", "pvt_v2_b2_li", PVT, stage="broad"),
    )


class TestTwins(ConformanceSuite):
    cases = (
        Case("pcpvt", "twins_pcpvt_small", {**TWINS, "img_size": 64}, checkpointing=False),
        Case(
            "svt",
            "twins_svt_small",
            {**TWINS, "depths": (2, 2, 2, 1), "img_size": 64},
            checkpointing=False,
            compiler="aot_eager",
        ),
    )
