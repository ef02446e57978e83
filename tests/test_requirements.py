"""What pyproject.toml requires: all that the package imports, each with a floor, and a torch that is safe."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from torch.torch_version import TorchVersion

from vitcompact.checkpoint.torch_release import PICKLE_SAFE_TORCH, REQUIRED_TORCH

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORT_NAMES = {"pillow": "PIL", "pyyaml": "yaml"}
RUNTIMES = {"onnx", "onnx_ir", "onnxscript", "onnxruntime", "openvino", "nncf", "coremltools", "executorch"}
OPTIONAL = {"matplotlib", "wandb", *RUNTIMES}  # extras; messages say how to install them


def floors(requirements: list[str]) -> dict[str, str]:
    """Lower bounds by lower-case name."""
    found = {}
    for requirement in requirements:
        match = re.fullmatch(r"([A-Za-z0-9_-]+)>=([0-9.]+)", requirement)
        assert match, f"{requirement!r} is not NAME>=VERSION"
        found[match[1].lower()] = match[2]
    return found


def imported(package: Path) -> set[str]:
    """Top-level modules that the sources of a package import, the standard library and the package itself left out."""
    names: set[str] = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {package.name}


def test_requires_exactly_what_the_package_imports() -> None:
    required = {IMPORT_NAMES.get(name, name) for name in floors(PROJECT["dependencies"])}
    assert required == imported(ROOT / "vitcompact") - OPTIONAL


def test_the_torch_that_messages_name_is_the_required_one() -> None:
    assert floors(PROJECT["dependencies"])["torch"] == REQUIRED_TORCH
    assert TorchVersion(REQUIRED_TORCH) >= PICKLE_SAFE_TORCH


def test_lowest_versions_are_the_floors() -> None:
    script = ROOT / ".ci" / "floors.py"
    written = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout.split()
    expected = floors(PROJECT["dependencies"])
    assert [line.lower() for line in written] == [f"{name}=={version}" for name, version in expected.items()]


@pytest.mark.parametrize("requirement", ["torch", "torch==2.13", "torch>=2.13,<3", "torch>2.13"])
def test_lowest_versions_need_a_floor(tmp_path: Path, requirement: str) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text(f'[project]\ndependencies = ["{requirement}"]\n')
    script = ROOT / ".ci" / "floors.py"
    result = subprocess.run([sys.executable, script, project], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert requirement in result.stderr
