"""Benchmarks are not part of the package: nothing else would notice that one has lost what it imports."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
OPTIONAL = {"matplotlib", "sklearn"}
"""What a script may need beyond the project's own requirements."""


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_every_script_finds_what_it_imports(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"needs {error.name}")


def test_no_circle_of_imports() -> None:
    """Imports inside functions count: a circle that only runs later still ties two files together."""
    files = {_module(path): path for path in FOLDER.rglob("*.py")}
    imports = {name: _imported(name, path, files) - {name} for name, path in files.items()}
    assert "frontier_plot" in imports["frontier_report"]  # made inside a function
    assert "frontier_methods.common" in imports["frontier_methods.heads"]  # a relative one
    assert set(TopologicalSorter(imports).static_order()) == set(files)  # raises CycleError, which names the circle


def _module(path: Path) -> str:
    return ".".join(path.relative_to(FOLDER).with_suffix("").parts).removesuffix(".__init__")


def _imported(name: str, path: Path, files: Mapping[str, Path]) -> set[str]:
    """The modules among `files` that one of them imports."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, (package if node.level else "", node.module)))
            full = {f"{base}.{alias.name}" for alias in node.names}
            found.update(full & set(files) or {base})
    return found & set(files)
