"""What `finetune` leaves of its course in OUT, and what it says on the way."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from vitcompact.cli.report.curve import draw_curve, thinned

from .commands import Run


def test_the_course_lies_in_out_and_is_ours(run: Run, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("finetune", "--steps", 3, "-b", 8, "--overwrite", "--json")
    with monkeypatch.context() as without:
        without.setattr("vitcompact.cli.verbs.finetune.can_draw", lambda: False)
        done = run(*words)
    out = job / "finetuned"
    assert "no loss.png is drawn: pip install 'vitcompact[plot]'" in done.err
    files = json.loads((out / "vitcompact.json").read_text())["files"]
    assert sorted(files) == sorted(path.name for path in out.iterdir())
    assert {"summary.csv", "steps.jsonl"} < set(files)
    assert [json.loads(line)["step"] for line in (out / "steps.jsonl").read_text().splitlines()] == [1, 2, 3]
    pytest.importorskip("matplotlib")
    again = run(*words)  # what lies there is known to be ours
    assert again.code == 0
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    with (out / "summary.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert float(rows[-1]["eval_top1"]) == json.loads(again.out)["top1"]["after"]
    (out / "mine.txt").write_text("mine")
    assert "it also holds mine.txt" in run(*words).error


def test_a_missing_extra_is_told_before_anything_is_read(run: Run, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitcompact.options.logs._installed", lambda package: False)
    result = run("finetune", "--log-wandb", "--data-dir", "nowhere")
    assert result.code == 2
    assert result.error.startswith(
        "error: --log-wandb needs wandb, not installed here: pip install 'vitcompact[wandb]'"
    )


def test_curves_of_any_length_are_drawn() -> None:
    pytest.importorskip("matplotlib")
    rows = [
        {"step": step, "train_loss": loss, "eval_top1": None, "eval_agreement": None, "eval_cosine": score}
        for step, loss, score in ((0, None, 0.5), (3, 0.25, 0.75), (5, 0.125, None))
    ]
    for losses in ([], [(1, None)], [(1, 0.5)], [(1, 0.5), (2, None), (3, 0.0)]):
        for some in ([], rows):
            assert draw_curve(losses, some).startswith(b"\x89PNG")
    points = thinned([(step, float(step)) for step in range(1, 10_001)])
    assert len(points) == 2000
    assert points[0] == (3.0, 3.0)


def test_answers_of_the_original_are_kept_of_images_that_do_not_vary(run: Run, job: Path) -> None:
    words = ("finetune", "--steps", 4, "-b", 8, "--overwrite", "--cache-teacher")
    refused = run(*words)
    assert refused.code == 2
    assert "--cache-teacher needs images that are the same in each epoch" in refused.error
    assert "--no-aug" in refused.error
    assert run(*words, "--no-aug").code == 0
    assert not (job / "finetune-state" / "teacher-cache").exists()
