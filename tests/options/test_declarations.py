"""Every option is declared once, its limits are checked, and no message of the library names a flag."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import vitcompact
from vitcompact.cli.options import VERBS
from vitcompact.errors import UsageError
from vitcompact.options.benchmarking import BenchOptions
from vitcompact.options.data import Augment, DataOptions
from vitcompact.options.declare import PANELS, Option, check_limits, declared, option
from vitcompact.options.source import SourceOptions
from vitcompact.options.surgery import SurgeryOptions
from vitcompact.options.training import TrainOptions

PACKAGE = Path(vitcompact.__file__).parent
_FLAG = re.compile(r"(?<![\w-])(?<!var\()--[a-z](?![\w-]*: )")  # no variables of a style sheet


def _modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def _declared_names() -> Counter[str]:
    """Names of fields whose value is a call of `option`, over the whole package."""
    return Counter(
        node.target.id
        for _, tree in _modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and _is_declaration(node.value)
    )


def _is_declaration(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "option"


def test_every_option_has_one_declaration() -> None:
    counted = _declared_names()
    assert {name: count for name, count in counted.items() if count != 1} == {}
    offered = {name for verb in VERBS for name in verb.options}
    assert offered - counted.keys() == set()
    assert len(offered) > 60
    assert {"ratio", "protect", "batch_size", "lr", "config", "scale", "init", "channels_last"} <= offered


def test_typer_options_are_made_in_one_place() -> None:
    made = [name for name, tree in _modules() for node in ast.walk(tree) if _is_typer_option(node)]
    assert sorted(made) == ["cli/app.py", *["cli/command.py"] * 2]  # --version, all that are declared, --help-all


def _is_typer_option(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "typer.Option"


def test_no_text_of_the_library_names_a_flag() -> None:
    found = [
        f"{name}:{node.lineno}: {node.value!r}"
        for name, tree in _modules()
        if not name.startswith("cli/")
        for node in _texts(tree)
        if isinstance(node.value, str) and _FLAG.search(node.value)
    ]
    assert found == []


def _texts(tree: ast.Module) -> Iterator[ast.Constant]:
    """String literals, parts of f-strings among them, that are not documentation."""
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in documentation)


def test_the_search_for_flags_finds_them() -> None:
    tree = ast.parse('"""--in documentation"""\nraise ValueError(f"give --ratio {x}", "--x", "a--b", "-- no")')
    assert {node.value for node in _texts(tree) if _FLAG.search(str(node.value))} == {"give --ratio ", "--x"}


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_option_says_what_it_is(verb: Any) -> None:
    assert {"json", "quiet", "verbose", "config"} <= verb.options.keys()
    for name, declaration in verb.options.items():
        assert declaration.panel in PANELS, name
        assert declaration.help[0].isupper() or declaration.help.startswith("timm"), name
        assert declaration.help.endswith("."), name
        assert not re.search(r"\b(harms?|drift)\b", declaration.help), name


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (DataOptions, {"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        (DataOptions, {"crop_pct": 1.5}, "`crop_pct` must be above 0 and at most 1, got 1.5"),
        (DataOptions, {"std": (0.5, 0.0)}, "`std` must be above 0"),
        (DataOptions, {"cache_mb": -1}, "`cache_mb` must be at least 0"),
        (DataOptions, {"interpolation": "best"}, "unknown `interpolation` 'best': accepted are nearest"),
        (SourceOptions, {"img_size": (32, 0)}, "`img_size` must be at least 1"),
        (TrainOptions, {"lr": float("inf")}, "`lr` must be above 0"),
        (TrainOptions, {"smoothing": 1.0}, "`smoothing` must be in [0, 1), got 1.0"),
        (Augment, {"scale": (0.5,)}, "`scale` takes two shares"),
        (SurgeryOptions, {"filter_rank": 4}, "`filter_rank` must be 0 to 3, got 4"),
        (SurgeryOptions, {"without": ("luck",)}, "`without` takes sensitivity, propagated_error, shared_maps; got"),
        (SurgeryOptions, {"terms": ("mode",)}, "`terms` takes identity, mean, conv; got 'mode'"),
        (SurgeryOptions, {"init": "zero"}, "unknown `init` 'zero'"),
        (BenchOptions, {"batch_sizes": (8, 0)}, "`batch_sizes` must be at least 1, got 8, 0"),
        (
            BenchOptions,
            {"batch_sizes": (10**400,)},
            "`batch_sizes` must be at most 9223372036854775807 in size, got 10",
        ),
        (DataOptions, {"seed": -(2**63)}, "`seed` must be at most 9223372036854775807 in size, got -9"),
        (TrainOptions, {"lr": 10**400}, "`lr` must be at most 9223372036854775807 in size, got 10"),
    ],
)
def test_what_is_not_allowed_is_refused_by_its_name(kind: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as refused:
        kind(**values)
    assert len(str(refused.value)) < 300


@dataclass(frozen=True)
class _Share:
    share: float | None = option(None, "A share.", above=0, below=1)


@pytest.mark.parametrize("value", [0, 1, -0.5, float("nan"), float("inf")])
def test_exclusive_limits_do_not_belong(value: float) -> None:
    with pytest.raises(UsageError, match=r"`share` must be between 0 and 1 \(both exclusive\)"):
        check_limits(_Share(value))


def test_what_is_allowed_or_not_given_passes() -> None:
    check_limits(_Share(0.5))
    check_limits(_Share())
    assert declared(_Share)["share"].help == "A share."


@pytest.mark.parametrize(
    ("declaration", "written", "value"),
    [
        (Option("", items=int), "8,8 4", (8, 8, 4)),
        (Option("", items=int), [8, 4], (8, 4)),
        (Option("", items=float), "0.5", (0.5,)),
        (Option("", items=int, words=("auto",)), "auto", "auto"),
        (Option("", items=str), "mean, conv", ("mean", "conv")),
        (Option("", items=str), "none", ()),
        (Option("", repeated=True), ["a", "b"], ("a", "b")),
        (Option(""), "text", "text"),
        (Option("", items=int), None, None),
    ],
)
def test_values_are_read_as_they_are_written(declaration: Option, written: Any, value: Any) -> None:
    assert declaration.read("name", written) == value


def test_a_list_may_hold_a_number_that_no_float_can() -> None:
    assert Option("", items=int).read("name", "1" + "0" * 400) == (10**400,)  # and is refused by its limits


@pytest.mark.parametrize("written", ["lots", "", "1,x", "nan"])
def test_lists_of_numbers_hold_numbers(written: str) -> None:
    with pytest.raises(UsageError, match=r"`name` takes 'auto' or numbers such as 0\.5"):
        Option("", items=float, words=("auto",)).read("name", written)
