"""What of a model is compacted and why the rest is not, on one model of each kind."""

from __future__ import annotations

import pytest
import timm

import vitcompact
from vitcompact import NothingToCompactError, UsageError
from vitcompact.analysis.support import support
from vitcompact.operators import OPERATORS

HEADS = {name for name, each in OPERATORS.items() if each.kind == "attention"}
FFN = {name for name, each in OPERATORS.items() if each.kind == "ffn"}


def test_a_plain_vit_is_compacted_throughout() -> None:
    model = timm.create_model("test_vit", img_size=32, depth=2).eval()
    found = support(model)
    assert [(layer.name, layer.kind) for layer in found.layers] == [
        *((f"blocks.{i}.attn", "attention") for i in range(2)),
        *((f"blocks.{i}.mlp", "ffn") for i in range(2)),
    ]
    assert [layer.layer for layer in found.layers[1:3]] == ["layers.attention.Attention", "layers.mlp.Mlp"]
    for layer in found.layers:
        assert set(layer.operators) <= (HEADS if layer.kind == "attention" else FFN)
        assert layer.operators
        assert not layer.reason
    assert found.no_merging == ""


@pytest.mark.parametrize(
    ("name", "options", "layer", "reason"),
    [
        ("xcit_nano_12_p16_224", {"depth": 1}, "blocks.0.attn", "channel attention"),
        ("test_vit3", {}, "attn_pool", "pools with one query"),
        ("pvt_v2_b0", {}, "stages.0.blocks.0.attn", "one head has no other"),
    ],
)
def test_what_is_left_alone_has_its_reason(name: str, options: dict[str, int], layer: str, reason: str) -> None:
    found = support(timm.create_model(name, **options).eval())
    left = {each.name: each for each in found.layers if not each.operators}
    assert reason in left[layer].reason
    assert left[layer].kind is None
    assert any(each.operators for each in found.layers)
    assert (found.to_json()["merging"]["reason"] != "") == (name != "test_vit3")


def test_models_that_have_no_answer() -> None:
    with pytest.raises(NothingToCompactError):
        support(timm.create_model("resnet18").eval())
    model = timm.create_model("test_vit", img_size=32, depth=1).eval()
    with pytest.raises(UsageError, match="compacted already"):
        support(vitcompact.convert(model))
