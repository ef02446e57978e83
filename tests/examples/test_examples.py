"""The examples do what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytestmark = pytest.mark.broad

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_own_classifier(capsys: pytest.CaptureFixture[str]) -> None:
    found = example("own_classifier").main()
    assert found["after"] > found["before"] - 1
    assert "the small model says" in capsys.readouterr().out


def test_feature_extractor() -> None:
    found = example("feature_extractor").main()
    assert found["cosine"] > 0.99
    assert found["neighbours"] > 0.5


def test_edit_plan() -> None:
    found = example("edit_plan").main()
    assert any(name.startswith("blocks.0.") for name in found["before"])
    assert found["after"] == [name for name in found["before"] if not name.startswith("blocks.0.")]


def test_deploy() -> None:
    pytest.importorskip("onnxruntime")
    difference, shape = example("deploy").main()
    assert difference < 1e-3
    assert shape == (4, 10)


def test_all_are_tried() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        "own_classifier",
        "feature_extractor",
        "edit_plan",
        "deploy",
    }
