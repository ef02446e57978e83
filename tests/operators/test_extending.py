"""The worked example of `docs/extending.md`: one file and one registry line, and everything knows the operator."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import vitcompact
from tests import narrow_nextvit
from tests.attached import plan_of
from tests.cli.commands import write_images
from tests.conformance.suite import check_operator
from vitcompact.cli.app import main
from vitcompact.folding.verify import perturbed
from vitcompact.models.cost import count
from vitcompact.operators import OPERATORS
from vitcompact.operators.registry import add
from vitcompact.plans.schema import Plan
from vitcompact.plans.specs import SPECS

DOCS = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
SIZE = (3, 64, 64)


def example() -> str:
    found = re.search(r"<!-- example: begin -->\n\n```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def constant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The example as the file that it would be, registered for these tests."""
    path = tmp_path_factory.mktemp("example") / "constant.py"
    path.write_text(example())
    spec = importlib.util.spec_from_file_location("example_constant", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["example_constant"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    add(module.Constant())
    yield module
    for known in (OPERATORS, SPECS):
        del known["constant"]
    del sys.modules["example_constant"]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(48, *SIZE, generator=torch.Generator().manual_seed(0))


def model_of(name: str, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return perturbed(timm.create_model(name, num_classes=5, **kwargs).eval(), seed=1).eval()


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("test_vit2", {"img_size": 64, "depth": 4}),
    "pvt": ("pvt_v2_b0", {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 48, 64), "num_heads": (1, 2, 3, 4)}),
}


def test_it_is_short() -> None:
    assert len(example().splitlines()) < 80


@pytest.mark.usefixtures("constant")
@pytest.mark.parametrize("name", ["vit", pytest.param("pvt", marks=pytest.mark.sweep)])
def test_a_budget_spends_it_and_everything_downstream_knows_it(name: str, images: Tensor, tmp_path: Path) -> None:
    base, kwargs = MODELS[name]
    model = model_of(base, **kwargs)
    compact = vitcompact.convert(model, images=images, target_macs=0.85, ops=("constant", "thin-vo"))
    used = [layer.name for layer in plan_of(compact).layers if layer.operators[-1].op == "constant"]
    assert used
    moved = perturbed(compact, seed=2)
    moved.vitcompact_plan = plan_of(compact)  # type: ignore[assignment]
    folded = vitcompact.fold(moved, tolerance=1e-3)
    assert count(folded, SIZE).macs <= 0.85 * count(model, SIZE).macs
    out = vitcompact.save(folded, tmp_path / "out")
    again = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert torch.equal(again(images[:4]), folded(images[:4]))
    assert Plan.from_json(json.loads(json.dumps(plan_of(folded).to_json()))) == plan_of(folded)
    assert f"constant, {len(used)} layer(s): the FFN gives the mean" in (out / "README.md").read_text()


@pytest.mark.usefixtures("constant")
@pytest.mark.parametrize("name", [*MODELS, "nextvit"])
def test_it_passes_what_every_operator_has_to(name: str, images: Tensor, tmp_path: Path) -> None:
    base, kwargs = {**MODELS, "nextvit": (narrow_nextvit.NAME, {})}[name]
    assert check_operator(OPERATORS["constant"], model_of(base, **kwargs), images[:4], tmp_path / "out")


@pytest.mark.usefixtures("constant")
def test_solved_from_images_it_is_better_than_from_weights(images: Tensor) -> None:
    model = model_of("test_vit2", img_size=64, depth=4)
    plan = plan_of(vitcompact.convert(model, images=images, target_macs=0.85, ops=("constant",)))
    solved, plain = (vitcompact.convert(model, plan=plan, images=given) for given in (images, None))
    with torch.no_grad():
        fresh = torch.randn(16, *SIZE, generator=torch.Generator().manual_seed(1))
        errors = [(other(fresh) - model(fresh)).square().mean() for other in (solved, plain)]
    assert errors[0] < errors[1]


@pytest.mark.broad
@pytest.mark.usefixtures("constant")
def test_the_command_line_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "photos", 16)
    words = ["test_vit", "--random-weights", "--img-size", "32", "--num-classes", "2", "--data-dir", "photos"]
    assert main(["analyze", *words, "--target-macs", "0.85", "--ops", "constant"]) == 0
    assert "constant" in capfd.readouterr().out
    assert main(["convert", "--dry-run"]) == 0
    assert "channels 64" in capfd.readouterr().out
    assert main(["convert"]) == 0
    assert main(["fold"]) == 0
    assert main(["convert", *words, "out", "--target-macs", "0.85", "--ops", "nothing-of-the-kind"]) == 2
    assert "constant" in capfd.readouterr().err
