"""timm's own training on our training form and on our folded form, by the parts that its train.py is made of."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, NativeScaler
from torch import Tensor, nn

import vitcompact

from .helpers import SIZE, make_teacher

LABELS = torch.arange(12) % 5


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(12, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def folders(images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A converted model with branches, and the same folded."""
    root = tmp_path_factory.mktemp("forms")
    compact = vitcompact.convert(make_teacher(), images=images, ratio=0.5, rank_ratio=0.5, branches=1)
    vitcompact.save(compact, root / "training")
    vitcompact.save(vitcompact.fold(compact), root / "folded")
    return {name: root / name for name in ("training", "folded")}


@pytest.mark.parametrize("how", ["plain", "layer decay", "mixup"])
@pytest.mark.parametrize("form", ["training", "folded"])
def test_timms_training_lowers_the_loss(form: str, how: str, folders: dict[str, Path], images: Tensor) -> None:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(f"local-dir:{folders[form]}", pretrained=True, drop_path_rate=0.0)
    more: dict[str, Any] = {"layer_decay": 0.75} if how == "layer decay" else {}
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, **more)
    scheduler, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=4, warmup_epochs=1, warmup_lr=1e-4)
    ema, scaler = ModelEmaV3(model, decay=0.5), NativeScaler(device="cpu")
    mixup = Mixup(mixup_alpha=0.2, cutmix_alpha=1.0, num_classes=5) if how == "mixup" else None
    criterion: nn.Module = SoftTargetCrossEntropy() if mixup else LabelSmoothingCrossEntropy(0.1)
    model.train()
    seen = []
    for epoch in range(6):
        scheduler.step(epoch)
        inputs, targets = mixup(images.clone(), LABELS) if mixup else (images, LABELS)
        value = criterion(model(inputs), targets)
        optimizer.zero_grad()
        scaler(value, optimizer, clip_grad=1.0, parameters=model.parameters())
        ema.update(model)
        seen.append(float(value.detach()))
    assert seen[-1] < seen[0] or mixup  # of which every step is another task
    assert all(map(math.isfinite, seen))
    assert all(weight.grad is not None for weight in model.parameters())
    before = timm.create_model(f"local-dir:{folders[form]}", pretrained=True).state_dict()
    assert all(not torch.equal(weight, before[name]) for name, weight in ema.module.named_parameters())


def test_a_script_that_does_not_know_us_takes_our_models(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line of the docs, with a script in the place of train.py."""
    (tmp_path / "train.py").write_text(
        "import argparse, timm\n"
        "if __name__ == '__main__':\n"
        "    parser = argparse.ArgumentParser()\n"
        "    parser.add_argument('--model')\n"
        "    model = timm.create_model(parser.parse_args().model, pretrained=True)\n"
        "    print(model.vitcompact_plan.layers[0].name)\n"
    )
    code = "import runpy, vitcompact; runpy.run_path('train.py', run_name='__main__')"
    assert code in (Path(vitcompact.__file__).parents[1] / "docs" / "finetune.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["-c", "--model", f"local-dir:{folders['training']}"])
    exec(code)
    assert capsys.readouterr().out.startswith("blocks.0")


def test_what_timm_trained_is_folded_and_saved(folders: dict[str, Path], images: Tensor, tmp_path: Path) -> None:
    """timm writes checkpoints of weights alone: they go back into the model that they are of."""
    model: nn.Module = timm.create_model(f"local-dir:{folders['training']}", pretrained=True)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3)
    model.train()
    LabelSmoothingCrossEntropy(0.1)(model(images), LABELS).backward()
    optimizer.step()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "last.pth.tar")
    again = vitcompact.load(folders["training"])
    timm.models.load_checkpoint(again, str(tmp_path / "last.pth.tar"))
    folded = vitcompact.load(vitcompact.save(vitcompact.fold(again), tmp_path / "folded"))
    with torch.no_grad():
        assert torch.allclose(folded(images), model.eval()(images), atol=1e-4)
