"""Curves that are measured once: found again for what they hold for, and for nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitcompact
from vitcompact.data import from_tensor
from vitcompact.errors import UsageError
from vitcompact.planning import curves as module
from vitcompact.planning import planner
from vitcompact.planning.candidates import measure_losses
from vitcompact.planning.curves import Curves
from vitcompact.planning.kept_losses import from_json, to_json
from vitcompact.planning.planner import plan_for
from vitcompact.planning.request import Budget
from vitcompact.planning.serving import Serving
from vitcompact.planning.site_time import SiteTimes

from .helpers import SIZE, perturbed_model, watch_sensitivity


@pytest.fixture(scope="module")
def vit() -> Any:
    return perturbed_model("test_vit2", img_size=64, num_classes=5, num_heads=4, embed_dim=48, depth=2)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(32, *SIZE, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every walk over the images."""
    done: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        done.append(1)
        return measure_losses(*args, **kwargs)

    monkeypatch.setattr(module, "measure_losses", counted)
    return done


def test_other_targets_cost_no_walk_and_give_the_same_plans(
    vit: nn.Module, images: Tensor, walks: list[int], tmp_path: Path
) -> None:
    path = tmp_path / "curves.json"
    for target in (0.9, 0.7):
        plan = vitcompact.plan(vit, images=images, target_macs=target, curves=Curves(path))
        assert plan == vitcompact.plan(vit, images=images, target_macs=target)
    by_params = vitcompact.plan(vit, images=images, target_params=0.8, curves=Curves(path))
    assert by_params == vitcompact.plan(vit, images=images, target_params=0.8)
    assert len(walks) == 1 + 3
    report = vitcompact.analyze(vit, images, target_macs=0.7, curves=Curves(path))
    assert report.budget is not None
    assert len(walks) == 1 + 3


def test_several_targets_of_latency_time_the_layers_once(
    vit: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the life of one object; the file has no times of another day."""
    timed: list[int] = []

    def counted(*args: Any) -> SiteTimes:
        timed.append(args[2].batch_size)
        return SiteTimes({})

    monkeypatch.setattr(planner, "time_sites", counted)
    monkeypatch.setattr(planner, "plan_measured", lambda _, losses, *args, **kwargs: losses.times)
    other = perturbed_model("test_vit2", img_size=64, num_classes=5, num_heads=4, embed_dim=48, depth=1)
    curves = Curves()
    for model, share, batch in ((vit, 0.9, 2), (vit, 0.8, 2), (vit, 0.8, 1), (other, 0.9, 1)):
        budget = Budget("latency", share, serving=Serving(batch_size=batch))
        plan_for(model, from_tensor(images, 16), budget, curves=curves)
    assert timed == [2, 1, 1]


def test_several_targets_measure_what_errors_do_once(
    vit: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the life of one object; with another model, other images or another `keep`, anew."""
    asked = watch_sensitivity(monkeypatch)
    curves, model = Curves(), copy.deepcopy(vit)
    first = [vitcompact.convert(model, images=images, target_macs=share, curves=curves) for share in (0.9, 0.8)]
    assert sorted(name for names in asked for name in names) == sorted({name for names in asked for name in names})
    alone = vitcompact.convert(model, images=images, target_macs=0.8)
    assert torch.equal(alone(images), first[1](images))
    asked.clear()
    vitcompact.convert(model, images=images, target_macs=0.8, curves=curves)
    assert not asked
    model.blocks[0].mlp.fc1.weight.data[0, 0] += 0.1  # type: ignore[index, union-attr]
    for changed in (images, images + 0.1):
        asked.clear()
        vitcompact.convert(model, images=changed, target_macs=0.8, curves=curves)
        assert asked


def test_what_is_kept_is_what_was_measured(vit: nn.Module, images: Tensor) -> None:
    losses = measure_losses(vit, from_tensor(images, 16))
    assert from_json(vit, json.loads(json.dumps(to_json(losses)))) == losses


CHANGES: dict[str, Callable[[Any, Tensor, dict[str, Any]], object]] = {
    "a weight": lambda model, images, asked: model.blocks[0].mlp.fc1.weight.data[0, 0].add_(0.01),
    "a setting": lambda model, images, asked: setattr(model.blocks[0].norm1, "eps", 1e-3),
    "a buffer": lambda model, images, asked: model.blocks[0].register_buffer("extra", torch.ones(1)),
    "an image": lambda model, images, asked: images[7, 0, 3, 3].add_(0.5),
    "the operators": lambda model, images, asked: asked.update(ops=("factorize", "neurons")),
    "the layers": lambda model, images, asked: asked.update(protect=("blocks.1",)),
    "branches": lambda model, images, asked: asked.update(branches=1),
    "the weighing": lambda model, images, asked: asked.update(without=("sensitivity",)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_them_has_them_measured_anew(
    change: str, vit: nn.Module, images: Tensor, walks: list[int], tmp_path: Path
) -> None:
    path, model = tmp_path / "curves.json", copy.deepcopy(vit)
    asked: dict[str, Any] = {"ops": ("factorize",)}
    kept: dict[str, Any] = {"target_macs": 0.97, "curves": Curves(path)}
    for _ in range(2):
        vitcompact.plan(model, images=images, **kept, **asked)
    assert len(walks) == 1
    CHANGES[change](model, images, asked)
    vitcompact.plan(model, images=images, **kept, **asked)
    assert len(walks) == 2


@pytest.mark.parametrize("content", ["{}", "[]", "no JSON", '{"layers": []}'])
def test_a_file_of_others_is_kept(content: str, vit: nn.Module, images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"notes\.json holds no curves"):
        vitcompact.plan(vit, images=images, target_macs=0.9, curves=Curves(path))
    assert path.read_text() == content


def first_of(data: dict[str, Any], op: str) -> list[Any]:
    """The candidates of an operator in the first layer that has some."""
    found: list[Any] = next(by_op[op] for by_op in data["sites"].values() if op in by_op)
    return found


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "no such layer": lambda data: data["sites"].update({"blocks.7.mlp": {}}),
    "no layers": lambda data: data.update(sites=3),
    "no such operator": lambda data: next(iter(data["sites"].values())).update(nothing=[[{}, 1.0]]),
    "an operator of other layers": lambda data: data["sites"]["blocks.0.attn"].update(
        neurons=first_of(data, "neurons")
    ),
    "a rank beyond the matrix": lambda data: first_of(data, "factorize")[-1][0].update(rank=10**9),
    "a size of no layer": lambda data: first_of(data, "neurons")[0][0].update(hidden=1),
    "a size twice": lambda data: first_of(data, "thin-qk").append(first_of(data, "thin-qk")[0]),
    "a size missing": lambda data: first_of(data, "thin-vo").pop(),
    "branches that nobody asked for": lambda data: first_of(data, "factorize")[0][0].update(branches=2),
    "other heads": lambda data: first_of(data, "hallucinate")[0][0].update(num_heads=5, kept=[0, 1, 2, 3]),
    "paths that are not offered": lambda data: first_of(data, "hallucinate")[0][0].update(conv=True),
    "a spec that is a list": lambda data: first_of(data, "factorize")[0].__setitem__(0, [8]),
    "a loss that is a text": lambda data: first_of(data, "factorize")[0].__setitem__(1, "NaN"),
    "a loss that is no number": lambda data: first_of(data, "factorize")[0].__setitem__(1, float("nan")),
    "a loss beyond all": lambda data: first_of(data, "factorize")[0].__setitem__(1, 1e300),
    "nothing of what was skipped": lambda data: data.pop("skipped"),
    "skipped without a reason": lambda data: data["skipped"].append(["blocks.0.attn"]),
    "images as a text": lambda data: data["predicted"].update(num_samples="4"),
    "no images": lambda data: data["predicted"].update(num_samples=0),
    "another measure": lambda data: data["predicted"].update(measure="luck"),
    "a negative loss": lambda data: data["predicted"]["points"][0].__setitem__(0, -1.0),
    "losses out of order": lambda data: data["predicted"]["points"].reverse(),
    "a likeness beyond one": lambda data: data["predicted"]["points"][0].__setitem__(1, 7.0),
    "an unknown field": lambda data: data.update(extra=1),
}


@pytest.fixture(scope="module")
def kept(vit: nn.Module) -> str:
    images = torch.randn(16, *SIZE, generator=torch.Generator().manual_seed(3))
    return json.dumps(to_json(measure_losses(vit, from_tensor(images, 16))))


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_nobody_measured_is_not_taken(damage: str, vit: nn.Module, kept: str) -> None:
    data = json.loads(kept)
    assert json.loads(json.dumps(to_json(from_json(vit, data, branches=0)))) == data
    DAMAGE[damage](data)
    with pytest.raises((UsageError, KeyError, TypeError, ValueError)):
        from_json(vit, data, branches=0)


@pytest.mark.parametrize("damage", ["no layers", "a rank beyond the matrix"])
def test_a_damaged_file_is_said_and_replaced(
    damage: str, vit: nn.Module, images: Tensor, walks: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "curves.json"
    asked: dict[str, Any] = {"ops": ("factorize",), "target_macs": 0.9}
    first = vitcompact.plan(vit, images=images, curves=Curves(path), **asked)
    honest = path.read_text()
    data = json.loads(honest)
    DAMAGE[damage](data)
    path.write_text(json.dumps(data))
    assert vitcompact.plan(vit, images=images, curves=Curves(path), **asked) == first
    assert "measured anew" in caplog.text
    assert len(walks) == 2
    assert path.read_text() == honest
