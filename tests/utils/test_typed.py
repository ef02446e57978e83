"""Dataclasses from JSON: what comes out is what was read, or an error that names the field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest

from vitcompact.utils.typed import typed


@dataclass(frozen=True)
class Inner:
    count: int
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    flag: bool
    kind: Literal["a", "b"]
    inner: Inner
    maybe: Inner | None = None
    sizes: tuple[int, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    free: Mapping[str, Any] = field(default_factory=dict)
    by_name: Mapping[str, Inner] = field(default_factory=dict)


GOOD: dict[str, Any] = {
    **{"name": "x", "flag": True, "kind": "b", "inner": {"count": 3, "share": 1}, "maybe": {"count": 0, "share": 0.1}},
    **{
        "sizes": [1, 2],
        "pair": [3, 4.5],
        "free": {"any": [None, {"x": 1e9}]},
        "by_name": {"one": {"count": 1, "share": 2}},
    },
}


def test_what_was_written_is_read() -> None:
    read = typed(Outer, GOOD, "it")
    assert json.loads(json.dumps(asdict(read))) == GOOD
    assert isinstance(read.maybe, Inner)
    assert typed(Outer, {key: GOOD[key] for key in ("name", "flag", "kind", "inner")}, "it").pair == (1, 2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 7}, "it.name must be a text, got 7"),
        ({"name": None}, "it.name must be a text, got NoneType"),
        ({"flag": 1}, "it.flag must be true or false, got 1"),
        ({"flag": "yes"}, "it.flag must be true or false"),
        ({"kind": "c"}, "it.kind must be"),
        ({"kind": ["a"]}, "it.kind must be"),
        ({"inner": None}, "it.inner must be an object"),
        ({"inner": {"count": 2.0}}, "it.inner.count must be an integer, got 2.0"),
        ({"inner": {"count": True}}, "it.inner.count must be an integer, got True"),
        ({"inner": {"count": "01"}}, "it.inner.count must be an integer"),
        ({"inner": {"count": 10**30}}, "it.inner.count must be an integer of a size"),
        ({"inner": {"count": 1, "share": float("nan")}}, "it.inner.share must be a finite number"),
        ({"inner": {"count": 1, "share": float("inf")}}, "it.inner.share must be a finite number"),
        ({"inner": {"count": 1, "share": 10**30}}, "it.inner.share must be a finite number"),
        ({"inner": {"count": 1, "share": True}}, "it.inner.share must be a finite number"),
        ({"inner": {}}, "it.inner has no count"),
        ({"inner": {"count": 1, "shares": 1}}, "it.inner has the unknown field 'shares'"),
        ({"maybe": []}, "it.maybe must be an object, got list"),
        ({"sizes": 3}, "it.sizes must be a list"),
        ({"sizes": [1, 2.5]}, "it.sizes must be an integer"),
        ({"sizes": {"0": 1}}, "it.sizes must be a list"),
        ({"pair": [1]}, "it.pair must be a list of 2, got 1"),
        ({"free": []}, "it.free must be an object"),
        ({"by_name": {"one": 1}}, "it.by_name.one must be an object"),
        ({"extra": 1}, "it has the unknown field 'extra'"),
    ],
)
def test_what_is_not_of_its_type_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[").replace(".", r"\.")):
        typed(Outer, {**GOOD, **change}, "it")


@pytest.mark.parametrize("data", [None, 7, "x", [], [GOOD]])
def test_what_is_no_object(data: Any) -> None:
    with pytest.raises(ValueError, match="it must be an object"):
        typed(Outer, data, "it")
