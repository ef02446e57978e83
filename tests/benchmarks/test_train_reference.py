"""The training script on a tiny model: schedule, time limit, resume, and the checkpoint it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import reference_recipes
import timm
import torch
import train_reference
from PIL import Image
from reference_recipes import RECIPES, Recipe
from reference_trainer import Images, Trainer
from timm.models.nextvit import NextViT

from vitcompact.errors import Interrupted, UsageError
from vitcompact.training.interrupt import StopRequest
from vitcompact.training.result import DivergedError

TINY = Recipe("test_byobnet", sizes=((0.0, 32), (0.5, 48)), epochs=3, batch_size=8, lr=0.01, ema_decay=0.5)


def colours(count: int, seed: int) -> Images:
    """Noisy images of two classes, red and blue."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 120, (count, 3, 16, 16), generator=generator)
    images[torch.arange(count), 2 * labels] += 100
    return Images(images.to(torch.uint8), labels)


def trainer(seed: int = 0, max_minutes: float | None = None) -> Trainer:
    torch.manual_seed(seed)
    return Trainer(TINY, TINY.create(2), seed, max_minutes)


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of class folders: to train on, to judge on."""
    roots = []
    for seed, name in enumerate(("train", "val")):
        root = tmp_path_factory.mktemp(name)
        data = colours(24, seed)
        for number, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
            path = root / ("red", "navy")[int(label)] / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
        roots.append(root)
    return roots[0], roots[1]


@pytest.fixture
def arguments(tars: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setitem(reference_recipes.RECIPES, "tiny", TINY)
    train, val = map(str, tars)
    return ["--model", "tiny", "--train", train, "--val", val, "--out", str(tmp_path / "out"), "--device", "cpu"]


def test_sizes_follow_the_schedule() -> None:
    assert [TINY.size_at(progress) for progress in (0.0, 0.49, 0.5, 1.0)] == [32, 32, 48, 48]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_make_models_that_run_at_all_their_sizes(name: str) -> None:
    recipe = RECIPES[name]
    with torch.device("meta"):
        model = recipe.create(10).eval()
        for _, size in recipe.sizes:
            assert model(torch.empty(2, 3, size, size)).shape == (2, 10)
    assert isinstance(model, NextViT) == (name == "nextvit")


def test_weights_to_start_from_are_of_the_recipes_architecture(arguments: list[str], tmp_path: Path) -> None:
    assert train_reference.main([*arguments, "--epochs", "1"]) == 0
    source = f"local-dir:{tmp_path / 'out'}"
    again = TINY.create(5, init=source)
    saved = timm.create_model(source, pretrained=True)
    assert torch.equal(again.get_parameter("stem.conv.weight"), saved.stem.conv.weight)
    assert again.num_classes == 5
    with pytest.raises(UsageError, match="needs a pvt_v2_b0"):
        RECIPES["pvt_v2_b0"].create(5, init=source)
    with pytest.raises(UsageError, match="cannot be loaded"):
        TINY.create(5, init=f"local-dir:{tmp_path / 'nowhere'}")


def test_progress_is_the_further_of_steps_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(max_minutes=1.0)
    run.step = 30
    monkeypatch.setattr(run, "elapsed", lambda: 15.0)
    assert run.progress(100) == 0.3
    monkeypatch.setattr(run, "elapsed", lambda: 45.0)
    assert run.progress(100) == 0.75
    monkeypatch.setattr(run, "elapsed", lambda: 99.0)
    assert run.progress(100) == 1.0


def test_training_learns() -> None:
    run, held_out = trainer(), colours(32, 1)
    data = colours(64, 0)
    for _ in range(TINY.epochs):
        run.train_epoch(data, StopRequest())
    assert run.step == TINY.epochs * 8
    assert run.top1(held_out, TINY.input_size) > 90


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    data, identity, path = colours(24, 0), {"recipe": TINY.to_json()}, tmp_path / "state.safetensors"
    straight = trainer()
    for epoch in range(3):
        straight.train_epoch(data, StopRequest())
        if epoch == 0:
            straight.save(path, identity)
    resumed = trainer(seed=0)
    with torch.no_grad():
        for parameter in resumed.model.parameters():
            parameter.add_(1.0)
    resumed.restore(path, identity)
    assert resumed.epoch == 1
    for _ in range(2):
        resumed.train_epoch(data, StopRequest())
    for name, tensor in straight.average.module.state_dict().items():
        assert torch.equal(tensor, resumed.average.module.state_dict()[name]), name


def test_a_state_of_other_options_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    trainer().save(path, {"seed": 0})
    with pytest.raises(UsageError, match="other options"):
        trainer().restore(path, {"seed": 1})


def test_a_loss_that_is_not_finite_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer()
    weights = {name: tensor.clone() for name, tensor in run.model.named_parameters()}
    forward = run._forward
    monkeypatch.setattr(run, "_forward", lambda *arguments: forward(*arguments) * float("nan"))
    with pytest.raises(DivergedError):
        run.train_epoch(colours(64, 0), StopRequest())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in run.model.named_parameters())


def test_a_stop_is_noticed() -> None:
    stop = StopRequest()
    stop.requested = True
    with pytest.raises(Interrupted, match="epoch 1"):
        trainer().train_epoch(colours(8, 0), stop)


def test_the_checkpoint_loads_through_timm(arguments: list[str], tmp_path: Path) -> None:
    assert train_reference.main([*arguments, "--resume", "auto"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["label_names"] == ["navy", "red"]
    assert config["pretrained_cfg"]["input_size"] == [3, 48, 48]
    assert "tag" not in config["pretrained_cfg"]
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert model.num_classes == 2
    assert config["training"]["top1"] > 50


def test_a_resumed_run_may_have_another_number_of_epochs(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> float:
        raise Interrupted("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(train_reference, "write_model", stop)
        assert train_reference.main([*arguments, "--epochs", "1"]) == 130
    capsys.readouterr()
    assert train_reference.main([*arguments, "--epochs", "2", "--seed", "1", "--resume", "auto"]) == 2
    assert "other options" in capsys.readouterr().err
    assert train_reference.main([*arguments, "--epochs", "2", "--resume", "auto"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "going on after epoch 1" in lines
    assert sum(line.startswith("epoch") for line in lines) == 1


def test_bad_input_is_one_message(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    assert train_reference.main(arguments) == 2
    assert "exists" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train_reference.parse_args([*arguments, "--epochs", "0"])
