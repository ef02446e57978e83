"""What notebooks show: tables of results, escaped, and bars; `repr` stays one short line."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch

import vitcompact
from vitcompact.plans.schema import LayerPlan, Plan, Skipped
from vitcompact.utils import progress


@pytest.fixture(scope="module")
def report() -> vitcompact.AnalysisReport:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3, img_size=32)
    return vitcompact.analyze(model, torch.randn(8, 3, 32, 32), ratio=0.5, rank_ratio=0.5)


def test_an_analysis_is_a_table_and_a_page(report: vitcompact.AnalysisReport, tmp_path: Path) -> None:
    shown = report._repr_html_()
    assert "MACs per image" in shown
    assert "<table>" in shown
    assert "<style" not in shown
    assert "\n" not in repr(report)
    assert len(repr(report)) < 300
    page = report.save(tmp_path / "page.html").read_text()
    assert all(part in page for part in ("Attention heads", "Attention maps on your pictures", "Who saves what"))
    report.save(tmp_path / "page.html")  # a page of ours is replaced
    (tmp_path / "notes.html").write_text("mine")
    for name, told in (("page.txt", "a page is a .html file"), ("notes.html", "not drawn by vitcompact")):
        with pytest.raises(vitcompact.UsageError, match=told):
            report.save(tmp_path / name)


def test_plans_and_results_are_escaped() -> None:
    plan = Plan((LayerPlan("blocks.<b>0", "ffn", ()),), (Skipped("x", "why"),))
    assert "blocks.&lt;b&gt;0" in plan._repr_html_()
    shown = vitcompact.EvalResult(num_samples=10, top1=90.0)._repr_html_()
    assert "top1" in shown
    assert "agreement" not in shown  # it was not measured
    assert "cosine" in vitcompact.Fidelity(0.9, 0.99, 10)._repr_html_()


def test_bars_are_drawn_in_notebooks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    class Bar:
        def __init__(self, **given: Any) -> None:
            made.append({**given, "done": 0.0, "closed": False})
            self.own = made[-1]

        def update(self, amount: float) -> None:
            self.own["done"] += amount

        def set_postfix_str(self, note: str) -> None:
            self.own["note"] = note

        def close(self) -> None:
            self.own["closed"] = True

    def work() -> None:
        progress.notebooks.start("evaluate", 2)
        progress.notebooks.advance(1)
        progress.notebooks.advance(1, "done")
        progress.notebooks.finish()

    monkeypatch.setattr(progress, "tqdm", Bar)
    for shell in (None, SimpleNamespace(config={}), SimpleNamespace(config={"IPKernelApp": {}})):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        work()
    (bar,) = made
    assert bar == {"total": 2, "desc": "evaluate", "leave": False, "done": 2.0, "note": "done", "closed": True}
