"""`--config`: values from YAML, below the command line; what a run recorded can be repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .commands import PAIR, SMALL, Run


def test_values_come_from_the_file_and_the_command_line_wins(run: Run, tmp_path: Path, images: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        f"source: test_vit\nrandom-weights: true\nimg_size: 32\nnum-classes: 2\ndata_dir: {images}\n"
        "rank-ratio: 0.25\nprotect: [blocks.0, blocks.1]\nmean: [0.1, 0.2, 0.3]\nonly: heads\n"
    )
    document = json.loads(run("analyze", "--config", "job.yaml", "--rank-ratio", 0.75, "--json").out)
    options = document["options"]
    assert options["rank_ratio"] == 0.75
    assert options["protect"] == ["blocks.0", "blocks.1"]
    assert options["mean"] == [0.1, 0.2, 0.3]
    assert options["only"] == "heads"
    assert document["layers"][0]["name"] == "blocks.2.attn"
    assert document["ffn"] == []


def test_unknown_key_shows_close_matches(run: Run, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("rato: 0.5\n")
    result = run("convert", "--config", "job.yaml")
    assert result.code == 2
    assert "'rato'" in result.error
    assert "did you mean" in result.error
    assert "ratio" in result.error


def test_option_of_another_verb_is_unknown(run: Run, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("epochs: 3\n")
    assert "unknown option 'epochs' of fold" in run("fold", "--config", "job.yaml").error


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("- a\n- b\n", "option names"),
        ("a: [", "not YAML"),
        ("ratio: {x: 1}", "must be a value"),
        ("ratio: half", "--ratio"),
    ],
)
def test_files_that_are_no_configuration(run: Run, tmp_path: Path, content: str, part: str) -> None:
    (tmp_path / "job.yaml").write_text(content)
    result = run("convert", "--config", "job.yaml")
    assert result.code == 2
    assert part in result.error


def test_missing_file(run: Run) -> None:
    assert "no.yaml" in run("convert", "--config", "no.yaml").error


def test_empty_file_changes_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("# nothing yet\nratio:\n")
    assert run("analyze", "test_vit", *SMALL, "--config", "job.yaml").code == 0


def test_recorded_options_repeat_a_run(run: Run, tmp_path: Path, images: Path) -> None:
    assert run("convert", "test_vit", "one", *SMALL, *PAIR, "--data-dir", images, "--protect", "blocks.0").code == 0
    assert run("convert", "test_vit", "two", "--config", "one/vitcompact.json").code == 0
    first, second = (json.loads((tmp_path / name / "vitcompact.json").read_text()) for name in ("one", "two"))
    assert first["plan"] == second["plan"]
    assert first["results"].pop("command") != second["results"].pop("command")
    assert first["results"] == second["results"]
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()


def test_printed_document_repeats_a_run(run: Run, tmp_path: Path) -> None:
    first = run("analyze", "test_vit", *SMALL, "--rank-ratio", 0.25, "--json")
    (tmp_path / "earlier.json").write_text(first.out)
    assert run("analyze", "--config", "earlier.json", "--json").out == first.out


def test_a_run_that_followed_a_plan_is_repeated(run: Run, tmp_path: Path) -> None:
    """By its record alone: the plan's file may be gone or another by now."""
    assert run("convert", "test_vit", "x", *SMALL, "--rank-ratio", 0.25, "--dry-run").code == 0
    assert run("convert", "test_vit", "one", *SMALL, "--plan", "x.plan.json").code == 0
    (tmp_path / "x.plan.json").unlink()
    again = run("convert", "test_vit", "two", "--config", "one/vitcompact.json")
    assert again.code == 0, again.err
    first, second = (json.loads((tmp_path / name / "vitcompact.json").read_text()) for name in ("one", "two"))
    assert first["plan"] == second["plan"]
    clash = run("convert", "test_vit", "three", "--config", "one/vitcompact.json", "--ratio", 0.5)
    assert (clash.code, "leave out --ratio" in clash.error) == (2, True)
