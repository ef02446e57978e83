"""Drawn analyses: complete, self-contained, safe against odd names, and refused early where they cannot be."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vitcompact.cli.report import check_report, write_report
from vitcompact.cli.report.colors import SCALE, shade
from vitcompact.errors import UsageError
from vitcompact.reporting import draw

MATRIX = [[1.0, 0.25, 0.5], [0.25, 1.0, 0.75], [0.5, 0.75, 1.0]]
LAYER = {
    "name": "blocks.0.attn",
    "num_heads": 3,
    "similarity": 0.75,
    "kept": [0, 1],
    "hallucinated": [{"head": 2, "parents": [1], "similarity": 0.75}],
    "matrix": MATRIX,
}
ANALYSIS: dict[str, Any] = {
    "model": "<b>vit & co</b>",
    "params": 1000,
    "macs": 2000,
    "layers": [LAYER],
    "ffn": [
        {"name": "blocks.0.mlp", "rank": 8, "energy": 0.9, "hidden": 64, "embed": 16, "spectrum": [0.7, 0.9, 0.99, 1.0]}
    ],
    "skipped": [{"name": "pool", "reason": "one query"}],
    "predicted": {"params": 800, "macs": 1500},
    "num_samples": 16,
    "measured": {"before": {"params": 1000, "macs": 2000}, "after": {"params": 800, "macs": 1500}, "predicted": True},
}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)


def test_html_is_well_formed_and_needs_nothing() -> None:
    text = draw(ANALYSIS)
    reader = _Reader()
    reader.feed(text)
    assert reader.open == []
    assert all(link.startswith("data:") for link in reader.links)
    assert not {"script", "iframe", "base"} & {*reader.tags}
    assert reader.tags.count("svg") == 3  # legend, one matrix, spectra
    assert "&lt;b&gt;vit &amp; co&lt;/b&gt;" in text
    for part in ("-20.0 %", "rank 8", "10 %", "one query", "heads 2 and 1: 0.750", "Measured on 16 images"):
        assert part in text


BUDGET: dict[str, Any] = {
    "unit": "macs",
    "target": 0.7,
    "left": 0.699,
    "interval": None,
    "harm": 2e-3,
    "curve": [{"left": 0.9, "harm": 1e-4}, {"left": 0.7, "harm": 2e-3}, {"left": 0.5, "harm": 0.0}],
    "layers": [
        {"name": "blocks.0.attn", "operators": [{"op": "thin-qk", "qk_dim": 24}], "saving": 0.01, "harm": 1e-5},
        {"name": "blocks.0.mlp", "operators": [{"op": "neurons", "hidden": 40}], "saving": 0.2, "harm": 1.9e-3},
        {"name": "blocks.1.mlp", "operators": [], "saving": 0.0, "harm": 0.0},
    ],
}


def test_a_budget_is_drawn_with_its_curve_and_its_plan() -> None:
    document = {**ANALYSIS, "budget": BUDGET}
    text = draw(document)
    _Reader().feed(text)
    for part in ("70 % asked for, 69.9 % left", "qk_dim 24", "hidden 40", "20.00 %", "nothing", "<polyline", "<circle"):
        assert part in text
    assert "69.9 % of the MACs left, loss increase 2.00e-03" in text
    draw({**document, "budget": {**BUDGET, "curve": []}})


def test_a_budget_has_its_curve_in_the_png_too() -> None:
    pytest.importorskip("matplotlib")
    from vitcompact.cli.report.png import draw_png

    document = {**ANALYSIS, "budget": BUDGET}
    alone, with_curve = (Image.open(io.BytesIO(draw_png(each))).height for each in (ANALYSIS, document))
    assert with_curve > alone + 100


@pytest.mark.parametrize("change", [{"layers": []}, {"ffn": []}, {"skipped": []}, {"num_samples": 0}])
def test_parts_may_be_absent(change: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib")
    from vitcompact.cli.report.png import draw_png

    document = {**ANALYSIS, **change}
    draw(document)
    assert Image.open(io.BytesIO(draw_png(document))).width > 1000


@pytest.mark.parametrize("heads", [1, 16, 24])
def test_any_number_of_heads(heads: int) -> None:
    pytest.importorskip("matplotlib")
    from vitcompact.cli.report.png import draw_png

    layer = {**LAYER, "num_heads": heads, "matrix": [[0.5] * heads] * heads, "hallucinated": []}
    document = {**ANALYSIS, "layers": [layer] * 7}
    assert draw(document).count("<svg") == 9  # legend, seven matrices, spectra
    draw_png(document)


def test_without_matrices_there_are_bars() -> None:
    layer = {name: value for name, value in LAYER.items() if name != "matrix"}
    assert "0.75" in draw({**ANALYSIS, "layers": [layer]})


def test_files_are_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(ANALYSIS, path)
    write_report(ANALYSIS, path)
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]


def test_what_cannot_be_drawn_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"\.html or a \.png"):
        check_report("report.svg")
    (tmp_path / "x.html").mkdir()
    with pytest.raises(UsageError, match="directory"):
        check_report(tmp_path / "x.html")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"vitcompact\[plot\]"):
        check_report("report.png")


def test_colours_span_the_scale() -> None:
    assert (shade(-1), shade(0), shade(1), shade(2)) == (SCALE[0], SCALE[0], SCALE[-1], SCALE[-1])
    assert shade(0.5) == SCALE[3]
