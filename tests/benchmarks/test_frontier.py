"""The frontier benchmark: methods that must be exact where there is nothing to lose, its statistics and its file."""

from __future__ import annotations

import copy
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.models import VisionTransformer
from torch import nn

import vitcompact
from vitcompact.folding.verify import perturbed
from vitcompact.training import TrainOptions

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from frontier_curves import at_speed, bootstrap, curves
from frontier_measure import fine_tune
from frontier_methods import METHODS, Calibration, UnreachableError, diffrate, grail, heads, variance
from frontier_methods.common import macs_of, nearest
from frontier_records import Key, Records, read_entries
from frontier_report import tables

pytestmark = pytest.mark.sweep
GRAIL = ["grail-magnitude", "grail-wanda", "grail-gram"]


@pytest.fixture(scope="module")
def model() -> VisionTransformer:
    torch.manual_seed(0)
    return perturbed(timm.create_model("test_vit3", img_size=64, num_classes=5, depth=4).eval(), seed=1).eval()


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(16, 3, 64, 64, generator=generator)
    return Calibration(images, torch.randint(5, (16,), generator=generator), batch_size=8)


@pytest.mark.parametrize(
    "method", ["pair", "uniform", "svd", "svd-copy", "heads", "variance", "merge", "merge-own", *GRAIL]
)
def test_methods_come_near_the_target_and_leave_the_model_alone(
    method: str, model: VisionTransformer, calibration: Calibration
) -> None:
    before = copy.deepcopy(model.state_dict())
    found = METHODS[method].run(model, calibration, 0.85)
    assert abs(macs_of(found) / macs_of(model) - 0.85) <= 0.04
    assert found(calibration.images).shape == (16, 5)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_budgets_of_the_benchmark_are_those_of_convert(model: VisionTransformer, calibration: Calibration) -> None:
    wanted = vitcompact.convert(model, images=calibration.images, target_macs=0.8)
    METHODS["budget"].run(model, calibration, 0.9)
    found = METHODS["budget"].run(model, calibration, 0.8)
    assert found.vitcompact_plan == wanted.vitcompact_plan
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in wanted.state_dict().items())


def test_a_budget_and_merging_share_the_saving(model: VisionTransformer, calibration: Calibration) -> None:
    wanted = vitcompact.convert(model, images=calibration.images, target_macs=0.6, merge_tokens="auto")
    found = METHODS["budget-merge"].run(model, calibration, 0.6)
    assert found.vitcompact_plan == wanted.vitcompact_plan
    assert abs(macs_of(found) / macs_of(model) - 0.6) <= 0.04


@pytest.mark.parametrize("method", ["variance", "heads", "svd-copy", "torch-pruning", "merge", "budget-merge"])
def test_every_kind_of_model_is_trained_and_costs_the_same_afterwards(
    method: str, model: VisionTransformer, calibration: Calibration, tmp_path: Path
) -> None:
    if method == "torch-pruning":
        pytest.importorskip("torch_pruning")  # it takes attention pooling apart: not that model
        model = perturbed(timm.create_model("test_vit", img_size=64, num_classes=5, depth=4).eval(), seed=1).eval()
    for number in range(8):
        pixels = torch.randint(256, (64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{number}.png")
    made = METHODS[method].run(model, calibration, 0.85)
    before, cost = copy.deepcopy(made.state_dict()), macs_of(made)
    trained, record = fine_tune(made, model, [str(tmp_path)], minutes=None, steps=2, batch_size=4, seed=0)
    assert record["steps"] == 2
    assert 0 < record["lr"] < 2e-4
    assert any(not torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert macs_of(trained) == cost


def test_every_method_gets_the_same_fine_tuning(
    model: VisionTransformer, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merging tokens too: on outputs alone it would be led away, and seem worse than it is."""
    Image.new("RGB", (64, 64)).save(tmp_path / "0.png")
    used, finetune = [], vitcompact.finetune

    def recorded(*args: Any, options: TrainOptions, **kwargs: Any) -> Any:
        used.append(options)
        return finetune(*args, options=options, **kwargs)

    monkeypatch.setattr(vitcompact, "finetune", recorded)
    for method in ("variance", "merge", "budget-merge"):
        made = METHODS[method].run(model, calibration, 0.85)
        fine_tune(made, model, [str(tmp_path)], minutes=None, steps=1, batch_size=1, seed=0)
    assert used == [TrainOptions(steps=1, seed=0)] * 3


@torch.no_grad()
def test_grail_puts_together_what_it_removes(model: VisionTransformer, calibration: Calibration) -> None:
    """Units that have a twin among those that stay are lost without a trace."""
    twice = copy.deepcopy(model)
    for mlp in twice.modules():
        if isinstance(mlp, timm.layers.Mlp):
            half = mlp.fc1.out_features // 2
            mlp.fc1.weight[half:], mlp.fc1.bias[half:] = mlp.fc1.weight[:half], mlp.fc1.bias[:half]
    found = grail.prune(twice, calibration, 0.9, lambda mlp, gram: -torch.arange(len(gram)).float())
    assert macs_of(found) < 0.95 * macs_of(twice)
    off = (found(calibration.images) - twice(calibration.images)).norm() / twice(calibration.images).norm()
    assert off < 2e-3  # the ridge's


@pytest.mark.parametrize("classes", [5, 0])
def test_diffrate_is_exact_where_nothing_goes_and_keeps_every_patch(classes: int, calibration: Calibration) -> None:
    model: VisionTransformer = timm.create_model("test_vit", img_size=64, num_classes=classes, depth=4).eval()
    model, images = perturbed(model, seed=1).eval(), calibration.images
    same, blocks = diffrate.install(model)
    torch.testing.assert_close(same(images), model(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(same.forward_features(images)[:, :1], model.forward_features(images)[:, :1])
    if classes:
        return
    torch.testing.assert_close(same.forward_features(images), model.forward_features(images), rtol=1e-4, atol=1e-5)
    for block, kept in zip(blocks, [(16, 16), (14, 12), (12, 11), (8, 8)], strict=True):
        block.kept = kept
    assert same.forward_features(images).shape == model.forward_features(images).shape
    assert macs_of(same) < macs_of(model)


def test_diffrate_searches_for_the_target(calibration: Calibration) -> None:
    model = timm.create_model("test_vit", img_size=64, num_classes=5, depth=4).eval()
    before = copy.deepcopy(model.state_dict())
    found = METHODS["diffrate"].run(model, calibration, 0.8)
    assert abs(macs_of(found) / macs_of(model) - 0.8) <= 0.04
    assert found(calibration.images).shape == (16, 5)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_a_target_out_of_reach(model: VisionTransformer, calibration: Calibration) -> None:
    with pytest.raises(UnreachableError, match=r"0\.50"):
        METHODS["copy"].run(model, calibration, 0.5)


def test_nearest_takes_the_closer_neighbour() -> None:
    macs = {0: 100, 1: 90, 2: 79, 3: 60}
    assert nearest(macs.__getitem__, range(4), 100, 0.82) == 2
    assert nearest(macs.__getitem__, range(4), 100, 0.87) == 1
    with pytest.raises(UnreachableError):
        nearest(macs.__getitem__, range(4), 100, 0.7)


@torch.no_grad()
def test_units_that_never_vary_go_without_a_trace(model: VisionTransformer, calibration: Calibration) -> None:
    still = copy.deepcopy(model)
    for module in still.modules():  # that of the pooling head as well
        if isinstance(module, timm.layers.Mlp):
            module.fc1.weight[: module.fc1.out_features // 4] = 0
    statistics = variance.measure(still, calibration)
    units = sum(len(layer.mean) for layer in statistics.values())
    pruned = variance.without(still, statistics, units // 4)
    assert macs_of(pruned) < macs_of(still)
    torch.testing.assert_close(pruned(calibration.images), still(calibration.images), rtol=1e-4, atol=1e-5)
    further = variance.without(still, statistics, units // 2)
    assert not torch.allclose(further(calibration.images), still(calibration.images), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_variance_and_mean_equal_those_of_all_tokens_at_once(
    model: VisionTransformer, calibration: Calibration
) -> None:
    seen = []
    mlp = model.blocks[1].mlp
    handle = mlp.fc2.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(calibration.images)
    handle.remove()
    found = variance.measure(model, calibration)["blocks.1.mlp"]
    hidden = seen[0].flatten(0, 1).double()
    torch.testing.assert_close(found.mean, hidden.mean(dim=0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.variance, hidden.var(dim=0, correction=0), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_heads_without_effect_score_zero_and_go_without_a_trace(
    model: VisionTransformer, calibration: Calibration
) -> None:
    still = copy.deepcopy(model)
    attention = still.blocks[0].attn
    attention.proj.weight[:, attention.head_dim : 2 * attention.head_dim] = 0
    with torch.enable_grad():
        scores = heads.importance(still, calibration)
    assert scores["blocks.0.attn"].tolist()[1] == 0
    assert scores["blocks.0.attn"].tolist()[0] > 0
    assert scores["blocks.1.attn"].norm().item() == pytest.approx(1)
    pruned = heads.without(still, [("blocks.0.attn", 1)])
    torch.testing.assert_close(pruned(calibration.images), still(calibration.images), rtol=1e-4, atol=1e-5)
    other = heads.without(still, [("blocks.0.attn", 0)])
    assert not torch.allclose(other(calibration.images), still(calibration.images), rtol=1e-3, atol=1e-3)


def test_head_importance_is_the_derivative_of_a_gate(model: VisionTransformer, calibration: Calibration) -> None:
    one = Calibration(calibration.images[:1], calibration.labels[:1])
    found = heads.importance(model, one)["blocks.1.attn"]
    attention, step, slopes = model.blocks[1].attn, 1e-2, []
    for head in range(attention.num_heads):
        losses = []
        for factor in (1 - step, 1 + step):
            gated = copy.deepcopy(model).double()
            columns = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
            with torch.no_grad():
                gated.blocks[1].attn.proj.weight[:, columns] *= factor
                output = gated(one.images.double())
            losses.append(nn.functional.cross_entropy(output, one.labels).item())
        slopes.append(abs(losses[1] - losses[0]) / (2 * step))
    wanted = torch.tensor(slopes, dtype=torch.float64)
    torch.testing.assert_close(found, wanted / wanted.norm(), rtol=1e-2, atol=1e-3)


def entry(values: list[int], speedup: float, macs: float = 0.8) -> dict[str, Any]:
    speed = [{"batch_size": 8, "speedup": speedup, "speedup_interval": [speedup - 0.01, speedup + 0.01]}]
    return {"main": "top1", "scores": {"top1": values, "agreement": values}, "speed": speed, "macs_ratio": macs}


def test_file_resumes_and_refuses_other_settings(tmp_path: Path) -> None:
    path, key = tmp_path / "results.jsonl", Key("a", "merge", 0.8, "raw", 0)
    Records(path, "a", {"num_images": 4}).add(key, {"x": 1})
    path.write_text(path.read_text() + '{"key": {"chec')  # killed while writing
    again = Records(path, "a", {"num_images": 4})
    assert again.has(key)
    again.add(Key("a", "merge", 0.7, "raw", 0), {"x": 2})
    assert len(read_entries([path])) == 2
    assert json.loads(path.read_text().splitlines()[-1])["x"] == 2
    assert Records(path, "b", {"num_images": 8}).entries
    with pytest.raises(SystemExit, match="num_images"):
        Records(path, "a", {"num_images": 8})


def test_several_files_are_read_together_if_they_are_comparable(tmp_path: Path) -> None:
    first, second, other = (tmp_path / name for name in ("first.jsonl", "second.jsonl.gz", "other.jsonl"))
    keys = [Key("a", "merge", target, "raw", 0) for target in (0.8, 0.7)]
    records = Records(first, "a", {"num_images": 4})
    for key in keys:
        records.add(key, {"x": 1})
    line = json.loads(first.read_text().splitlines()[0])
    second.write_bytes(gzip.compress(json.dumps({**line, "x": 2}).encode()))
    assert {key: entry["x"] for key, entry in read_entries([first, second]).items()} == {keys[0]: 2, keys[1]: 1}
    Records(other, "a", {"num_images": 8}).add(keys[0], {"x": 3})
    with pytest.raises(SystemExit, match="num_images"):
        read_entries([first, other])
    second.write_bytes(second.read_bytes()[:20])
    with pytest.raises(SystemExit, match="second"):
        read_entries([second])


def test_paired_interval_holds_the_difference() -> None:
    better = torch.tensor([1.0] * 90 + [0.0] * 10, dtype=torch.float64)
    worse = torch.tensor([1.0] * 80 + [0.0] * 20, dtype=torch.float64)
    low, high = bootstrap(better - worse)
    assert 0.03 < low < 0.1 < high < 0.18
    assert bootstrap(better - better) == (0, 0)


def test_report_compares_at_equal_speed() -> None:
    right, half = [1] * 100, [1, 0] * 50
    entries = {
        Key("c", "original", 1.0, "raw", 0): entry(right, 1.0, 1.0),
        Key("c", "budget", 0.8, "raw", 0): entry(half, 1.25),
        Key("c", "budget", 0.6, "raw", 0): entry(right, 1.5),
        Key("c", "merge", 0.6, "raw", 0): entry(right, 1.5),
        Key("c", "variance", 0.8, "raw", 0): entry(right, 1.25),
        Key("c", "variance", 0.6, "raw", 0): entry(half, 1.5),
        Key("c", "variance", 0.6, "raw", 1): entry(right, 1.5),
        Key("c", "copy", 0.6, "raw", 0): {"unreachable": "closest is 0.86"},
    }
    found = curves(entries)[0]
    assert found.methods["variance"][1].seeds == (0.5, 1.0)
    line = at_speed(found.original, found.methods["variance"], 1.375)
    assert line is not None
    assert line.mean() == pytest.approx(0.875)
    assert at_speed(found.original, found.methods["merge"], 1.25) is None  # one point, far from the original
    assert at_speed(found.original, found.methods["variance"], 1.65) is None
    text = tables(entries)
    assert "copied heads at 0.6: closest is 0.86" in text
    assert "| **100.00 %** | **100.00 %** | **100.00 %** |  |" in text
    assert "75.00 % (-25.00, " in text
