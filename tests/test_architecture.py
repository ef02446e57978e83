"""Who may import whom: the contracts of pyproject.toml hold, they can fail, and docs/architecture.md says the same."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
LATE = {
    ("vitcompact.cli.report.write", "vitcompact.cli.report.png"),
    ("vitcompact.exporting.onnx_file", "vitcompact.exporting.onnx_formats"),
    ("vitcompact.timm_hook", "vitcompact.checkpoint.timm_entry"),
}
"""Imports inside functions: matplotlib and onnx are extras, and the package is light until a model is built."""


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of the package and the pyproject.toml in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "160"}
    command = [sys.executable, "-c", LINT]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    result.stdout = re.sub(r"\x1b\[[0-9;]*m", "", result.stdout)  # colours
    return result


def contracts() -> dict[str, dict[str, object]]:
    """The contracts by their id."""
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    return {contract["id"]: contract for contract in linter["contracts"]}


def test_the_contracts_hold() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(contracts())} kept, 0 broken" in result.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with the sources and the contracts, to break them in."""
    shutil.copytree(ROOT / "vitcompact", tmp_path / "vitcompact", ignore=skipped)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_every_contract_can_fail(copy: Path) -> None:
    for file, line in (
        ("plans/__init__.py", "import torch, vitcompact.models.base"),
        ("layers/__init__.py", "def late() -> None:\n    import numpy, vitcompact.plans.schema"),
        ("operators/__init__.py", "import timm.layers"),
        ("planning/__init__.py", "import rich.table, onnx"),
    ):
        with (copy / "vitcompact" / file).open("a") as out:
            out.write(f"\n{line}\n")
    result = lint(copy)
    assert result.returncode == 1
    text = " ".join(result.stdout.split())
    for contract in contracts().values():
        assert f"{contract['name']} BROKEN" in text
    for low, high in (("plans", "models"), ("layers", "plans")):
        assert f"vitcompact.{low} is not allowed to import vitcompact.{high}" in text


def test_a_room_that_no_row_names_is_noticed(copy: Path) -> None:
    room = copy / "vitcompact" / "newroom"
    room.mkdir()
    (room / "__init__.py").write_text("")
    result = lint(copy)
    assert result.returncode == 1
    assert "newroom" in result.stdout


def skipped(folder: str, names: list[str]) -> list[str]:
    """What a copy for the linter does without."""
    return [name for name in names if (Path(folder) / name).is_file() and not name.endswith(".py")]


def test_the_page_shows_the_layers_of_the_contract() -> None:
    drawn = re.search(r"<!-- rooms: begin -->\n+```text\n(.*?)```\n+<!-- rooms: end -->", PAGE.read_text(), re.DOTALL)
    assert drawn is not None
    rows = [re.split(r" {2,}", row.strip())[0] for row in drawn[1].splitlines() if row.strip()]
    assert rows == contracts()["layers"]["layers"]


def test_the_page_describes_every_room() -> None:
    rooms = {path.name for path in (ROOT / "vitcompact").iterdir() if (path / "__init__.py").is_file()}
    described = re.findall(r"^- \*\*`(\w+)/`\*\*", PAGE.read_text(), re.MULTILINE)
    assert sorted(described) == sorted(rooms)


def test_no_circle_of_modules() -> None:
    """Imports inside functions and for type checkers count too."""
    graph = grimp.build_graph("vitcompact", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert "vitcompact.checkpoint.record" in imports["vitcompact.cli.workspace"]  # made inside a function
    assert set(TopologicalSorter(imports).static_order()) == graph.modules  # raises CycleError, which names the circle


def test_late_imports_are_those_known() -> None:
    package = ROOT / "vitcompact"
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in package.rglob("*.py")}
    found = {(name, imported) for name, path in modules.items() for imported in late_imports(path, set(modules))}
    assert found == LATE


def late_imports(path: Path, modules: set[str]) -> set[str]:
    """Modules of the package that the functions of a file import."""
    found: set[str] = set()
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom) and node.module:
                    full = {f"{node.module}.{alias.name}" for alias in node.names}
                    found |= full & modules or {node.module}
                elif isinstance(node, ast.Import):
                    found |= {alias.name for alias in node.names}
    return {name for name in found if name.partition(".")[0] == "vitcompact"}
