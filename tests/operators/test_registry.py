"""Operators are objects in a registry: nothing outside their room asks which one it has."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vitcompact
from vitcompact.errors import UsageError
from vitcompact.operators import OPERATORS, describe
from vitcompact.operators.hallucinate import make_spec
from vitcompact.plans.schema import Plan
from vitcompact.plans.specs import SPECS, OperatorSpec

PACKAGE = Path(vitcompact.__file__).parent


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if "operators" not in path.relative_to(PACKAGE).parts[:1]:
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_no_isinstance_on_a_spec_outside_operators() -> None:
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                asked = {getattr(part, "id", "") for part in ast.walk(node.args[1])}
                assert not [name for name in asked if name.endswith("Spec")], f"{path}:{node.lineno}"


def test_no_spec_of_an_operator_is_imported_outside_operators() -> None:
    known = {operator.spec.__name__ for operator in OPERATORS.values()}
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert not known & {alias.name for alias in node.names}, f"{path}:{node.lineno}"


def test_every_operator_says_what_it_is() -> None:
    assert list(OPERATORS) == list(SPECS) == ["hallucinate", "thin-qk", "thin-vo", "neurons", "factorize"]
    for operator in OPERATORS.values():
        assert all(isinstance(text, str) and text for text in (operator.title, operator.description, operator.source))
        assert dataclasses.fields(operator.spec)
        assert operator.kind == operator.spec.kind


EXAMPLES: dict[str, dict[str, Any]] = {
    "hallucinate": make_spec(4, {1: 0, 3: 2}, ("identity",)).to_json(),
    "thin-qk": {"op": "thin-qk", "qk_dim": 16},
    "thin-vo": {"op": "thin-vo", "v_dim": 8},
    "neurons": {"op": "neurons", "hidden": 64},
    "factorize": {"op": "factorize", "rank": 8, "branches": 1},
}


def test_a_description_is_long_unless_it_is_asked_to_be_short() -> None:
    told = set()
    for name, data in EXAMPLES.items():
        operator = OPERATORS[name]
        spec = operator.spec.from_json(data)
        assert describe(operator, data) == operator.label(spec)
        assert describe(operator, data, short=True) == operator.short_label(spec)
        told.add(operator.label(spec) == operator.short_label(spec))
    assert False in told


@pytest.mark.parametrize("name", EXAMPLES)
def test_specs_are_read_back_and_described(name: str) -> None:
    spec = SPECS[name].from_json(EXAMPLES[name])
    assert SPECS[name].from_json(spec.to_json()) == spec
    assert describe(OPERATORS[name], EXAMPLES[name])
    assert describe(OPERATORS[name], EXAMPLES[name], short=True) in describe(OPERATORS[name], EXAMPLES[name])


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("wrong", [2.0, 2.9, "8", True, None, [8], float("inf")])
def test_a_number_is_an_integer_and_nothing_else(name: str, wrong: object) -> None:
    """What is read must be what was meant: no rounding, no text, no flags as numbers."""
    for field in (key for key, value in EXAMPLES[name].items() if type(value) is int):
        kind = "attention" if SPECS[name].kind == "attention" else "ffn"
        layer = {"name": "x", "kind": kind, "operators": [{**EXAMPLES[name], field: wrong}]}
        with pytest.raises(UsageError, match=f"{field} must be an integer"):
            Plan.from_json({"version": 1, "layers": [layer]})


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_misspelt_field_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="unknown field 'ranks'"):
        SPECS[name].from_json({**EXAMPLES[name], "ranks": 3})


def test_an_old_name_of_an_operator_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitcompact.plans.specs import ALIASES

    monkeypatch.setitem(ALIASES, "fewer-units", "neurons")
    layer = {"name": "mlp", "kind": "ffn", "operators": [{"op": "fewer-units", "hidden": 8}]}
    read = Plan.from_json({"version": 1, "layers": [layer]}).layers[0].operators[0]
    assert isinstance(read, OperatorSpec)
    assert read.to_json() == {"op": "neurons", "hidden": 8}
