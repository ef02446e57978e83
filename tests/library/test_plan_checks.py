"""What does not fit a model is refused before anything is solved: plans edited by hand, patterns that match nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from timm.models import VisionTransformer
from torch import Tensor

import vitcompact
from tests.attached import plan_of
from vitcompact import Plan, UsageError

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def planned(vit: VisionTransformer) -> dict[str, Any]:
    document = vitcompact.plan(vit, ratio=0.5, rank_ratio=0.5, merge_tokens=1).to_json()
    document["layers"][0]["operators"].append({"op": "thin-qk", "qk_dim": 4})
    document["layers"][0]["operators"].append({"op": "thin-vo", "v_dim": 4})
    return document


@pytest.fixture
def nothing_is_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("solved")

    for name in ("convert_calibrated", "convert_from_weights", "plan_for"):
        monkeypatch.setattr(f"vitcompact.surgery.job.{name}", never)


def first(kind: str, **changes: Any) -> Edit:
    """Change the first operator of this name."""

    def edit(document: dict[str, Any]) -> None:
        specs = (spec for layer in document["layers"] for spec in layer["operators"])
        next(spec for spec in specs if spec["op"] == kind).update(changes)

    return edit


def ffn(**spec: Any) -> Edit:
    """Another operator for the first FFN."""

    def edit(document: dict[str, Any]) -> None:
        layer = next(layer for layer in document["layers"] if layer["kind"] == "ffn")
        layer["operators"] = [spec]

    return edit


def named(name: str) -> Edit:
    return lambda document: document["layers"][0].update(name=name)


def twice(document: dict[str, Any]) -> None:
    document["layers"].append(document["layers"][0])


HEADS = {"kept": [0, 1], "hallucinated": [{"head": 2, "parents": [0]}]}

EDITS: dict[str, tuple[Edit, str]] = {
    "more hidden units": (ffn(op="neurons", hidden=99999), "has 128 hidden units, 99999 is not fewer"),
    "rank": (first("factorize", rank=99999), "matrix of 128 to 32, rank 99999 is too large"),
    "rank just too large": (first("factorize", rank=33), "rank 33 is too large"),
    "rank after fewer units": (
        lambda document: next(layer for layer in document["layers"] if layer["kind"] == "ffn").update(
            operators=[{"op": "neurons", "hidden": 8}, {"op": "factorize", "rank": 16}]
        ),
        "rank 16 is too large|operators come once each",
    ),
    "queries": (first("thin-qk", qk_dim=64), "thin-qk: heads are 8 wide, 64 is not narrower"),
    "values": (first("thin-vo", v_dim=9), "thin-vo: heads are 8 wide, 9 is not narrower"),
    "heads": (first("hallucinate", num_heads=3, **HEADS), "expects 3 heads in 'blocks.0.attn', the model has 4"),
    "layer": (named("blocks.7.attn"), "layer 'blocks.7.attn', which this model does not have"),
    "block": (named("blocks.0.mlp"), "twice|does not have"),
    "a layer twice": (twice, "layer 'blocks.0.attn' twice"),
    "blocks": (lambda document: document.update(merge_tokens=[1, 1, 1]), "merges tokens in 3 blocks, the model has 2"),
}


@pytest.mark.usefixtures("nothing_is_solved")
@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("with_images", [True, False], ids=["images", "weights"])
def test_an_edited_plan_is_refused_before_the_work(
    name: str, with_images: bool, planned: dict[str, Any], vit: VisionTransformer, images: Tensor, tmp_path: Path
) -> None:
    edit, message = EDITS[name]
    document = json.loads(json.dumps(planned))
    edit(document)
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match=message):
        vitcompact.convert(vit, plan=Plan.load(tmp_path / "plan.json"), images=images if with_images else None)


def test_an_edit_that_fits_is_followed(planned: dict[str, Any], vit: VisionTransformer) -> None:
    document = json.loads(json.dumps(planned))
    first("factorize", rank=8)(document)
    plan = Plan.from_json(document)
    assert plan_of(vitcompact.convert(vit, plan=plan)) == plan


@pytest.mark.usefixtures("nothing_is_solved")
@pytest.mark.parametrize(
    ("pattern", "near"),
    [("foo*", "blocks.0"), ("block.0", "blocks.0"), ("blocks.9", "blocks.1"), ("blocks.0.atn", "blocks.0.attn")],
)
def test_a_pattern_that_matches_nothing_names_near_ones(
    pattern: str, near: str, vit: VisionTransformer, images: Tensor
) -> None:
    calls: tuple[Callable[..., object], ...] = (vitcompact.convert, vitcompact.plan, vitcompact.analyze)
    requests: tuple[dict[str, float], ...] = ({"target_macs": 0.8}, {"ratio": 0.5})
    for call in calls:
        for request in requests:
            with pytest.raises(UsageError, match=r"`protect`: .* matches no layer of this model; near are ") as error:
                call(vit, images=images, protect=["blocks.1", pattern], **request)
            assert near in str(error.value).partition("near are ")[2]


@pytest.mark.parametrize("pattern", ["blocks.0", "blocks.[01].mlp", "*attn", "blocks.0.mlp.fc2", "head"])
def test_whatever_the_model_has_may_be_protected(pattern: str, vit: VisionTransformer) -> None:
    plan = vitcompact.plan(vit, protect=pattern)
    assert plan.layers
