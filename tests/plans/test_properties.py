"""Plans made at random: what is written is read, and nothing else is."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import vitcompact.operators  # noqa: F401  (registers the specs)
from vitcompact.errors import UsageError
from vitcompact.operators.factorize import FactorizeSpec
from vitcompact.operators.hallucinate import HallucinatedHead, HallucinateSpec
from vitcompact.operators.neurons import NeuronsSpec
from vitcompact.operators.thin import ThinQkSpec, ThinVoSpec
from vitcompact.plans.schema import LayerPlan, Plan, Skipped

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
sizes = st.integers(1, 4096)


@st.composite
def hallucination(draw: st.DrawFn) -> HallucinateSpec:
    order = draw(st.permutations(range(draw(st.integers(1, 16)))))
    kept = tuple(order[: draw(st.integers(1, len(order)))])
    children = tuple(HallucinatedHead(head, (draw(st.sampled_from(kept)),)) for head in order[len(kept) :])
    flags = {name: draw(st.booleans()) for name in ("identity", "mean", "conv")}
    return HallucinateSpec(len(order), kept, children, **flags, filter_rank=draw(st.integers(0, 3)))


def some(*operators: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(*(st.none() | each for each in operators)).map(
        lambda found: tuple(o for o in found if o is not None)
    )


attention = some(hallucination(), st.builds(ThinQkSpec, sizes), st.builds(ThinVoSpec, sizes))
ffn = some(st.builds(NeuronsSpec, sizes), st.builds(FactorizeSpec, sizes, st.integers(0, 8)))
kinds = st.one_of(st.tuples(st.just("attention"), attention), st.tuples(st.just("ffn"), ffn))
layers = st.lists(st.tuples(names, kinds), max_size=6, unique_by=lambda layer: layer[0]).map(
    lambda found: tuple(LayerPlan(name, kind, operators) for name, (kind, operators) in found)
)
plans = st.builds(
    Plan,
    layers,
    st.lists(st.builds(Skipped, names, names), max_size=3).map(tuple),
    st.sampled_from(("training", "folded")),
    merge_tokens=st.lists(st.integers(0, 200), max_size=4).map(tuple),
)
bounded = settings(max_examples=40, deadline=None, derandomize=True, database=None)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@given(plans)
@bounded
def test_what_is_written_is_read(plan: Plan) -> None:
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.folded().folded() == plan.folded()
    assert str(plan)
    assert repr(plan)


@given(plans, st.data())
@bounded
def test_what_is_accepted_is_what_was_read(plan: Plan, data: st.DataObject) -> None:
    """One place of a plan replaced by anything: refused, or read as exactly that."""
    document = json.loads(json.dumps(plan.to_json()))
    changed = copy.deepcopy(document)
    inner, key = changed, data.draw(st.sampled_from(sorted(changed)))
    while isinstance(inner[key], (dict, list)) and inner[key] and data.draw(st.booleans()):
        inner = inner[key]
        key = data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
    inner[key] = data.draw(anything)
    try:
        read = Plan.from_json(changed)
    except UsageError:
        return
    assert json.loads(json.dumps(read.to_json())) == {**changed, **({} if read.merge_tokens else _without(changed))}


def _without(document: dict[str, Any]) -> dict[str, Any]:
    """An empty list of tokens to merge is not written."""
    assert document.pop("merge_tokens", []) == []
    return document


@given(anything)
@bounded
def test_nothing_else_is_a_plan(document: Any) -> None:
    try:
        Plan.from_json(document)
    except UsageError:
        return
    raise AssertionError(document)
