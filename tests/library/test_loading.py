"""What is loaded when: the package and the command line are light, the library's names are not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm

import vitcompact
from vitcompact import public

HEAVY = "import sys, json; print(json.dumps(sorted({'torch', 'timm', 'numpy', 'PIL'} & set(sys.modules))))"


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["convert", "--help"], ["convert", "--rato", "0.5"], ["x"]]
)
def test_help_and_wrong_options_load_neither_torch_nor_timm(words: list[str]) -> None:
    done = python(f"from vitcompact.cli.app import main; main({words!r}); {HEAVY}")
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize(
    "first", ["import timm, vitcompact", pytest.param("import vitcompact, timm", marks=pytest.mark.sweep)]
)
def test_timm_knows_our_models_in_either_order(first: str, saved: Path) -> None:
    done = python(
        f"{first}; m = timm.create_model('local-dir:{saved}', pretrained=True); print(m.vitcompact_plan is not None)"
    )
    assert done.stdout == "True\n", done.stderr


@pytest.mark.broad
def test_a_package_of_the_library_is_no_obstacle() -> None:
    """Modules imported before a name is asked for leave the name what it is."""
    done = python("import vitcompact.plans.schema, vitcompact; print(callable(vitcompact.plan), vitcompact.Plan)")
    assert done.stdout.startswith("True <class"), done.stderr


def test_names() -> None:
    assert set(public.__all__) <= set(dir(vitcompact))
    assert all(getattr(vitcompact, name) is getattr(public, name) for name in public.__all__)
    assert vitcompact.__all__ == public.__all__
    with pytest.raises(AttributeError, match="no attribute 'convrt'"):
        vitcompact.convrt  # noqa: B018
    assert "vitcompact" in timm.list_models()
