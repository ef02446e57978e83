"""Small architectures made at random: converted, folded, saved and read again, they compute the same."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vitcompact
from tests.attached import parity_of
from vitcompact.folding.verify import perturbed


@st.composite
def architectures(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.sampled_from((2, 3, 4)))
    pooled = draw(st.sampled_from(("avg", "token")))
    return {
        **{"depth": draw(st.integers(1, 2)), "num_heads": heads, "embed_dim": heads * draw(st.sampled_from((16, 32)))},
        **{"img_size": draw(st.sampled_from((16, (16, 24)))), "patch_size": 8, "num_classes": draw(st.integers(0, 3))},
        **{"mlp_ratio": draw(st.sampled_from((2.0, 3.5, 4.0))), "qkv_bias": draw(st.booleans())},
        **{"qk_norm": draw(st.booleans()), "init_values": draw(st.sampled_from((None, 0.1)))},
        **{"reg_tokens": draw(st.integers(0, 2)), "global_pool": pooled, "in_chans": draw(st.sampled_from((1, 3)))},
        **{"class_token": pooled == "token" or draw(st.booleans()), "pre_norm": draw(st.booleans())},
    }


@given(
    architectures(),
    st.sampled_from((0.5, 0.75)),
    st.sampled_from((0.25, 0.5)),
    st.booleans(),
    st.integers(0, 2),
)
@settings(max_examples=4, deadline=None, derandomize=True, database=None)
@torch.no_grad()
def test_there_and_back(args: dict[str, Any], ratio: float, rank: float, with_images: bool, branches: int) -> None:
    torch.manual_seed(0)
    model = perturbed(timm.create_model("vit_tiny_patch16_224", **args).eval(), seed=1)
    images = torch.randn(16, *vitcompact.data.resolve_input(model).input_size)
    given_images = images if with_images else None
    made = vitcompact.convert(model, images=given_images, ratio=ratio, rank_ratio=rank, branches=branches)
    moved = perturbed(made, seed=2).eval()
    folded = vitcompact.fold(moved)
    assert parity_of(folded).rel_diff <= 2e-4
    wanted = moved(images)
    scale = float(wanted.abs().max())
    assert float((folded(images) - wanted).abs().max()) <= 1e-3 * scale
    if any(layer.operators for layer in vitcompact.attached.results(folded).plan.layers):
        assert sum(p.numel() for p in folded.parameters()) != sum(p.numel() for p in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        for number, each in enumerate((moved, folded)):
            again = vitcompact.load(vitcompact.save(each, Path(folder) / str(number)))
            assert torch.equal(again(images), each(images))
            assert vitcompact.attached.results(again).plan == vitcompact.attached.results(each).plan
