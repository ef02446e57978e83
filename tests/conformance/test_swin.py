"""Windows with relative position biases: Swin and Swin V2."""

from tests.conformance.suite import Case, ConformanceSuite

SMALL = {"img_size": 64, "window_size": 4, "embed_dim": 32, "depths": (2, 1, 2), "num_heads": (2, 4, 4)}
SMALL |= {"drop_path_rate": 0.0}


class TestSwin(ConformanceSuite):
    cases = (
        Case("swin", "swin_tiny_patch4_window7_224", SMALL, stage="broad"),
        Case("swin_v2", "swinv2_tiny_window8_256", SMALL, compiler="aot_eager"),
    )
