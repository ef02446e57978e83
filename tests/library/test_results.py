"""What Python users see of results, and that README's program runs."""

from __future__ import annotations

import pydoc
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.models import VisionTransformer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import vitcompact
from tests.cli.commands import write_images
from vitcompact import Results, TrainOptions, UsageError

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.broad
def test_the_program_in_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = README.read_text(encoding="utf-8").partition("## As a library")[2]
    program = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    small = {
        '"deit_small_patch16_224", pretrained=True': '"test_vit", num_classes=2, img_size=32',
        "num_samples=512": "num_samples=16",
        "reconstruct=300": "reconstruct=2",
        "max_minutes=5": "steps=2",
        "bench(folded, model)": "bench(folded, model, batch_sizes=(1,), num_pairs=3)",
    }
    for written, tried in small.items():
        assert program.count(written) == 1, written
        program = program.replace(written, tried)
    write_images(tmp_path / "images", 8)
    write_images(tmp_path / "val", 4)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(program, str(README), "exec"), names)
    for name in ("analyze", "plan", "convert", "finetune", "fold", "save", "load", "evaluate", "bench"):
        assert f"vitcompact.{name}(" in program
    folded, again = names["folded"], names["again"]
    assert isinstance(folded, torch.nn.Module)
    assert isinstance(again, torch.nn.Module)
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in folded.state_dict().items())
    out = capsys.readouterr().out
    assert "AnalysisReport of" in out
    assert "Plan (training): " in out
    assert "EvalResult(top1=" in out
    assert max(map(len, out.splitlines())) < 250


def test_help_is_the_library_at_one_glance() -> None:
    page = pydoc.plain(pydoc.render_doc(vitcompact))
    glance = page.partition("PACKAGE CONTENTS")[0]
    functions = [name for name in vitcompact.__all__ if name.islower() and not name.startswith("_")]
    assert functions == [
        *("compact", "analyze", "plan", "convert", "convert_within", "finetune", "fold", "export", "open_exported"),
        *("evaluate", "bench", "compare", "results", "plain_attention", "save", "load", "push", "load_source"),
    ]
    positions = [glance.index(f" {name}(") for name in functions]
    assert positions == sorted(positions)
    assert all(getattr(vitcompact, name).__doc__ for name in functions)
    assert all(hasattr(vitcompact, name) for name in vitcompact.__all__)


def test_short_reprs(vit: VisionTransformer, images: Tensor) -> None:
    compact = vitcompact.convert(vit, images=images, ratio=0.5)
    found = [
        vitcompact.analyze(vit, images, target_macs=0.8),
        vitcompact.results(compact),
        vitcompact.results(compact).plan,
        vitcompact.results(compact).fidelity,
        vitcompact.finetune(compact, vit, images, options=TrainOptions(steps=1)),
        vitcompact.evaluate(compact, images, reference=vit),
        vitcompact.bench(compact, vit, batch_sizes=(1, 2), num_pairs=2, warmup=0),
    ]
    for each in found:
        assert "\n" not in repr(each)
        assert len(repr(each)) < 250
        assert type(each).__name__ in repr(each)


def test_results_of_each_stage(vit: VisionTransformer, images: Tensor, tmp_path: Path) -> None:
    compact = vitcompact.convert(vit, images=images)
    found = vitcompact.results(compact)
    assert found.plan == compact.vitcompact_plan
    assert found.fidelity is not None
    assert found == Results(found.plan, fidelity=found.fidelity)
    folded = vitcompact.fold(compact, merge_tokens=1)
    after = vitcompact.results(folded)
    assert after.plan == replace(found.plan.folded(), layers=after.plan.layers, merge_tokens=(1, 1))
    assert after.parity is not None
    assert after.parity == folded.vitcompact_parity
    assert after.merging is not None
    assert after.merging == folded.vitcompact_merging
    vitcompact.save(folded, tmp_path / "out")
    assert vitcompact.results(vitcompact.load(tmp_path / "out")) == Results(after.plan)
    with pytest.raises(UsageError, match="must come from convert, fold or load, got a VisionTransformer"):
        vitcompact.results(vit)


def test_evaluate_takes_images_in_the_plainest_way(vit: VisionTransformer, images: Tensor) -> None:
    labels = vit(images).argmax(1)
    labels[:10] = (labels[:10] + 1) % 5
    loader = DataLoader(TensorDataset(images, labels), batch_size=7)
    wanted = vitcompact.evaluate(vit, list(loader))
    assert wanted.top1 == 75
    assert vitcompact.evaluate(vit, images, labels) == wanted
    assert vitcompact.evaluate(vit, images, labels, batch_size=3) == wanted
    assert vitcompact.evaluate(vit, (images, labels)) == wanted
    assert vitcompact.evaluate(vit, loader) == wanted
    assert vitcompact.evaluate(vit, images).top1 is None
    with pytest.raises(UsageError, match=r"labels must be a tensor \(40,\).* got \(39,\)"):
        vitcompact.evaluate(vit, images, labels[1:])
    with pytest.raises(UsageError, match="batches bring their own"):
        vitcompact.evaluate(vit, loader, labels)
    with pytest.raises(UsageError, match=r"images must be a tensor .* got str"):
        vitcompact.evaluate(vit, "images")  # type: ignore[arg-type]
