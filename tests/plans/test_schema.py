"""The plan document."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from vitcompact.errors import UsageError
from vitcompact.operators.factorize import FactorizeSpec
from vitcompact.operators.hallucinate import HallucinatedHead, HallucinateSpec
from vitcompact.plans.schema import LayerPlan, Plan, Skipped

PLAN = Plan(
    layers=(
        LayerPlan("blocks.0.attn", "attention", (HallucinateSpec(3, (2, 0), (HallucinatedHead(1, (2,)),), True),)),
        LayerPlan("blocks.0.mlp", "ffn", (FactorizeSpec(32, 1),)),
    ),
    skipped=(Skipped("blocks.1.attn", "protected"),),
)


def test_round_trip() -> None:
    assert Plan.from_json(json.loads(json.dumps(PLAN.to_json()))) == PLAN
    assert Plan.from_json(PLAN.folded().to_json()).form == "folded"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "version 99"),
        ({"version": None}, "version None"),
        ({"form": "melted"}, "melted"),
        ({"layers": [{"name": "x"}]}, "malformed"),
        ({"layers": 3}, "malformed"),
        ({"merge_tokens": 3}, "malformed"),
        ({"merge_tokens": [1, -1]}, "merge_tokens"),
        ({"merge_tokens": ["1"]}, "merge_tokens"),
        ({"merge_tokens": [1], "merge_by": "values"}, "merge_by must be one of sensitivity, tokens, keys"),
        ({"merge_tokens": [1], "merge_by": ["keys"]}, "merge_by must be one of sensitivity, tokens, keys"),
        ({"layers": [{"name": "x", "kind": "ffn", "operators": [{"op": "shrink"}]}]}, "unknown operator 'shrink'"),
        ({"layers": [{"name": "x", "kind": "ffn", "operators": [{"op": "factorize", "rank": 0}]}]}, "at least 1"),
    ],
)
def test_bad_documents(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Plan.from_json({**PLAN.to_json(), **change})


@pytest.mark.parametrize(
    ("kept", "hallucinated"),
    [((0, 1), ()), ((), ((0, 1), (1, 0), (2, 0))), ((0, 1, 2), ((2, 0),)), ((0,), ((1, 2), (2, 0)))],
)
def test_heads_must_add_up(kept: tuple[int, ...], hallucinated: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(UsageError, match="hallucinate"):
        HallucinateSpec(3, kept, tuple(HallucinatedHead(child, (parent,)) for child, parent in hallucinated))


def test_token_merging_is_in_the_document_only_where_there_is_any() -> None:
    assert "merge_tokens" not in PLAN.to_json()
    merging = replace(PLAN, merge_tokens=(2, 0, 1))
    assert Plan.from_json(json.loads(json.dumps(merging.to_json()))) == merging
