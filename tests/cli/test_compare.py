"""`compare` from the command line, and its page."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from vitcompact.reporting import draw

from .commands import Run


def test_from_the_command_line(run: Run, job: Path, images: Path, tmp_path: Path) -> None:
    models = (job / "converted", job / "folded", job / "finetuned")
    words = ("compare", *models, "--data-dir", images / "val", "--num-pairs", 2, "--report", "page.html")
    done = run(*words, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)["models"]
    assert [each["name"] for each in found] == [str(path) for path in models]
    assert all(each["bytes"] and each["top1"] is not None for each in found)
    assert found[1]["agreement"] is not None
    page = (tmp_path / "page.html").read_text()
    HTMLParser().feed(page)
    assert page.count("<circle") == 3
    shown = run(*words[:-2], "--quiet").out
    assert "Compared with" in shown
    assert "times as fast" in shown
    assert "two or more models" in run("compare", models[0]).error
    assert "is HTML here" in run("compare", *models, "--report", "page.png").error


def test_the_page_without_scores_has_no_plot_and_escapes_names() -> None:
    row: dict[str, Any] = {
        "name": "<b>/x",
        "top1": None,
        "agreement": None,
        "cosine": None,
        "change": None,
        "latency_ms": 1.0,
    }
    row |= {"speedup": 1.0, "speedup_interval": [0.9, 1.1], "macs": 10, "params": 10, "bytes": 40}
    text = draw({"models": [row, {**row, "name": "y"}]})
    assert "<circle" not in text
    assert "&lt;b&gt;" in text
    assert draw({"models": [{**row, "top1": 90.0}, {**row, "top1": 90.0}]}).count("<circle") == 2
