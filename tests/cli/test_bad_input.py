"""Every kind of bad input: one message that helps, the right exit code, no traceback, nothing half-written."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from safetensors.torch import save_file

import vitcompact

from .commands import PAIR, SMALL, VIT, Run, write_images


def test_unknown_timm_name_shows_close_matches(run: Run) -> None:
    result = run("analyze", "deit_tiny_patch16_22")
    assert result.code == 2
    assert "deit_tiny_patch16_224" in result.error


def test_no_model_at_all(run: Run) -> None:
    assert run("analyze").code == 2
    assert "no model was given" in run("analyze").error


def test_source_given_twice(run: Run) -> None:
    result = run("convert", "test_vit", "--checkpoint", "x.pth")
    assert result.code == 2
    assert "twice" in result.error


def test_missing_file(run: Run) -> None:
    assert run("analyze", "no/such.safetensors").code == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.safetensors", b"this is no checkpoint"),
        ("text.pth", b"this is no checkpoint"),
        ("empty.safetensors", b""),
        ("oversized.safetensors", struct.pack("<Q", 1 << 60) + b"{}"),
    ],
)
def test_a_file_that_is_no_checkpoint(run: Run, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    result = run("analyze", name, *VIT)
    assert result.code == 4
    assert name in result.error


def test_truncated_safetensors(run: Run, tmp_path: Path, weights: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:-1000])
    result = run("convert", "cut.safetensors", "out", *VIT)
    assert result.code == 4
    assert "cut.safetensors" in result.error


class Hostile:
    """Runs code when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


def test_pickle_with_code_is_refused_by_name(run: Run, tmp_path: Path) -> None:
    torch.save({"state_dict": Hostile()}, tmp_path / "evil.pth")
    result = run("analyze", "evil.pth", *VIT)
    assert result.code == 4
    assert "system" in result.error
    assert not (tmp_path / "pwned").exists()


def test_weights_of_another_architecture(run: Run, tmp_path: Path) -> None:
    save_file(timm.create_model("resnet18", num_classes=2).state_dict(), tmp_path / "resnet.safetensors")
    result = run("analyze", "resnet.safetensors", *VIT)
    assert result.code == 4
    assert "missing" in result.error.lower()


@pytest.mark.parametrize("ratio", ["0", "1", "-1", "nan", "1.5", "inf"])
@pytest.mark.parametrize("name", ["--ratio", "--rank-ratio"])
def test_ratio_outside_its_range(run: Run, name: str, ratio: str) -> None:
    result = run("convert", "test_vit", "out", *SMALL, name, ratio)
    assert result.code == 2
    assert name in result.error


def test_ratio_that_is_no_number(run: Run) -> None:
    result = run("convert", "test_vit", "out", *SMALL, "--ratio", "half")
    assert result.code == 2
    assert "--ratio" in result.error
    assert "convert --help" in result.error


@pytest.mark.parametrize("verb", ["analyze", "convert", "eval"])
def test_missing_image_folder(run: Run, verb: str) -> None:
    result = run(verb, "test_vit", *SMALL, "--data-dir", "nowhere")
    assert result.code == 2
    assert "nowhere" in result.error


@pytest.mark.parametrize("verb", ["analyze", "convert", "eval"])
def test_empty_image_folder(run: Run, tmp_path: Path, verb: str) -> None:
    (tmp_path / "empty").mkdir()
    result = run(verb, "test_vit", *SMALL, "--data-dir", "empty")
    assert result.code == 2
    assert "empty" in result.error


def test_corrupt_image_among_good_ones_is_skipped_and_shown(run: Run, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 4)
    (tmp_path / "images" / "cat" / "broken.png").write_bytes(b"not an image")
    result = run("analyze", "test_vit", *SMALL, *PAIR, "--data-dir", "images", "--json")
    assert result.code == 0
    assert json.loads(result.out)["num_samples"] == 8
    assert "broken.png" in result.err
    assert "1 unreadable" in result.err
    scored = run("eval", "test_vit", *SMALL, "--data-dir", "images", "--json")
    assert json.loads(scored.out)["skipped"] == 1


@pytest.mark.parametrize("verb", ["convert", "finetune", "fold"])
def test_out_that_exists(run: Run, job: Path, images: Path, verb: str) -> None:
    before = {path: path.read_bytes() for path in job.rglob("*") if path.is_file()}
    result = run(verb)
    assert result.code == 2
    assert "--overwrite" in result.error
    assert {path: path.read_bytes() for path in job.rglob("*") if path.is_file()} == before


def test_out_with_other_files_is_never_replaced(run: Run, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years")
    result = run("convert", "test_vit", "precious", *SMALL, "--overwrite")
    assert result.code == 2
    assert (tmp_path / "precious" / "thesis.txt").exists()


def test_disk_full_while_writing_weights(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*args: object, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    result = run("convert", "test_vit", "out", *SMALL)
    assert result.code == 2
    assert "disk is full" in result.error
    assert list(tmp_path.iterdir()) == []


def test_disk_full_while_writing_the_workspace(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vitcompact.utils.files.os.fsync", full)
    result = run("analyze", "test_vit", *SMALL)
    assert result.code == 2
    assert "disk is full" in result.error
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_finetune_without_images(run: Run) -> None:
    assert run("convert", "test_vit", *SMALL).code == 0
    result = run("finetune", "--steps", 1)
    assert result.code == 2
    assert "--data-dir" in result.error


@pytest.mark.parametrize("scale", ["0.5", "0.9,0.5", "0,1", "nan,1", "half,1"])
def test_crops_of_no_sensible_size(run: Run, job: Path, scale: str) -> None:
    result = run("finetune", "--steps", 1, "--scale", scale, "--overwrite")
    assert result.code == 2
    assert "scale" in result.error


def test_eval_without_images(run: Run) -> None:
    result = run("eval", "test_vit", *SMALL)
    assert result.code == 2
    assert "--data-dir" in result.error


def test_eval_never_takes_the_training_images(run: Run, images: Path) -> None:
    assert run("convert", "test_vit", *SMALL, *PAIR, "--data-dir", images / "train").code == 0
    assert "--data-dir" in run("eval").error


@pytest.mark.parametrize(
    ("verb", "missing"),
    [("convert", "analyze"), ("finetune", "convert"), ("fold", "convert"), ("eval", "convert"), ("bench", "convert")],
)
def test_missing_stage_says_which_verb_to_run(run: Run, verb: str, missing: str) -> None:
    result = run(verb)
    assert result.code == 2
    assert f"vitcompact {missing}" in result.error


def test_converted_again_makes_finetuned_stale(run: Run, job: Path) -> None:
    assert run("convert", "--overwrite").code == 0
    result = run("fold", "--overwrite")
    assert result.code == 2
    assert "vitcompact finetune" in result.error


def test_another_source_makes_converted_stale(run: Run, job: Path) -> None:
    assert run("analyze", "test_vit2", *SMALL).code == 0
    result = run("finetune", "--overwrite")
    assert result.code == 2
    assert "vitcompact convert" in result.error


def test_changed_source_file_is_noticed(run: Run, weights: Path, tmp_path: Path) -> None:
    shutil.copy(weights, tmp_path / "mine.safetensors")
    assert run("analyze", "mine.safetensors", *VIT).code == 0
    other = timm.create_model("test_vit", num_classes=2, img_size=32, depth=2)
    save_file(other.state_dict(), tmp_path / "mine.safetensors")
    result = run("convert")
    assert result.code == 2
    assert "vitcompact analyze" in result.error


def test_deleted_stage_says_which_verb_to_run(run: Run, job: Path) -> None:
    shutil.rmtree(job / "converted")
    result = run("finetune", "--overwrite")
    assert result.code == 2
    assert "vitcompact convert" in result.error


def test_damaged_workspace(run: Run, tmp_path: Path) -> None:
    (tmp_path / "vitcompact-out").mkdir()
    (tmp_path / "vitcompact-out" / "workspace.json").write_text('{"format": 1')
    result = run("convert")
    assert result.code == 2
    assert "workspace.json is damaged" in result.error


@pytest.mark.parametrize("content", ["{", "[1, 2]", '{"version": 99}', '{"version": 1, "layers": [{}]}'])
def test_plan_file_that_is_none(run: Run, tmp_path: Path, content: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    result = run("convert", "test_vit", "out", *SMALL, "--plan", "plan.json")
    assert result.code == 2
    assert "plan" in result.error


def test_plan_and_ratio_exclude_each_other(run: Run, job: Path) -> None:
    result = run("convert", "test_vit", "out", *SMALL, "--plan", job / "plan.json", "--ratio", 0.5)
    assert result.code == 2
    assert "leave out --ratio" in result.error


@pytest.mark.parametrize("name", ["report.pdf", "report"])
def test_report_of_an_unknown_kind_is_refused_before_any_work(run: Run, name: str) -> None:
    result = run("analyze", "test_vit", *SMALL, "--report", name)
    assert result.code == 2
    assert ".html" in result.error
    assert not Path("vitcompact-out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("analyze", "no such model"),
        ("convert", "no such model", "out", "--data-dir", "nor that"),
        ("convert", "no such model", "out", "--data-dir", "nor that", "--min-cosine", "0.9"),
        ("compact", "no such model", "out", "--data-dir", "nor that"),
        ("eval", "no such model"),
        ("compare", "no such model", "nor this"),
    ],
)
def test_a_report_that_cannot_be_written_is_told_before_anything_is_opened(
    run: Run, tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "taken").write_text("not a folder")
    result = run(*words, "--report", "taken/page.html")
    assert result.code == 2
    assert "cannot write" in result.error
    assert "taken/page.html" in result.error
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_plan_that_cannot_be_written_is_told_before_anything_is_opened(run: Run, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("not a folder")
    result = run("convert", "no such model", "taken/out", "--data-dir", "nor that", "--dry-run")
    assert result.code == 2
    assert "cannot write" in result.error


def test_a_demo_that_cannot_be_written_is_told_before_it_runs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("vitcompact.demo.run"), "_Demo", None)  # it would fail otherwise
    (tmp_path / "taken").write_text("not a folder")
    result = run("demo", "--workdir", "taken")
    assert result.code == 2
    assert "cannot write" in result.error


@pytest.mark.parametrize("verb", ["analyze", "convert", "finetune", "eval", "bench"])
def test_device_that_is_not_there(run: Run, verb: str) -> None:
    result = run(verb, "test_vit", "--device", "warp:9")
    assert result.code == 2
    assert "warp:9" in result.error


def test_markup_in_paths_survives(run: Run) -> None:
    assert "[red]odd[/red]/x.safetensors" in run("analyze", "[red]odd[/red]/x.safetensors").error


def test_a_folder_of_nothing_but_unreadable_images(run: Run, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"")
    assert run("convert", "test_vit", "out", *SMALL, "--data-dir", "images").code == 2


def test_merging_tokens_where_it_cannot_be_done(run: Run, tmp_path: Path) -> None:
    vitcompact.save(timm.create_model("test_resnet"), tmp_path / "plain")
    assert "cannot be merged" in run("fold", "plain", "out", "--merge-tokens", 2).error
    assert "merge-tokens" in run("fold", "plain", "out", "--merge-tokens", "-2").error
    assert "1,8,32" in run("fold", "plain", "out", "--merge-tokens", "many").error


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--merge-tokens", "1,2,3", "--merge-tokens: 3 numbers were given for the 2 blocks of this model"),
        ("--exclude", "nonsense", "--exclude: 'nonsense' matches no layer"),
    ],
)
@pytest.mark.parametrize(
    "words", [["analyze", "test_vit"], ["convert", "test_vit", "out"], ["compact", "test_vit", "out"]]
)
def test_what_does_not_fit_the_model_is_told_before_an_image_is_read(
    run: Run, words: list[str], flag: str, value: str, message: str
) -> None:
    result = run(*words, *SMALL, "--data-dir", "nowhere", flag, value)
    assert result.code == 2
    assert message in result.error
    assert "warning" not in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target-macs", "0.8", "--ratio", "0.5"), "leave out --ratio"),
        (("--target-macs", "0.8", "--target-params", "0.8"), "one of --target-macs and --target-params"),
        (("--target-macs", "1.5"), "--target-macs must be between 0 and 1"),
        (("--target-macs", "0.8", "--ops", "prune"), "got 'prune'"),
        (("--ops", "neurons"), "--ops narrows a budget"),
        (("--target-macs", "0.8"), "needs images"),
        (("--merge-tokens", "auto"), "--merge-tokens auto shares a budget"),
        (("--merge-tokens", "lots"), "--merge-tokens takes 'auto' or numbers"),
        (("--merge-tokens", "1", "--terms", "conv"), "does not go with 3x3 filters"),
        (
            ("--reconstruct", "-1"),
            "--reconstruct must be at least 0, got -1",
        ),  # Typer's releases put the range differently
        (("--without", "luck"), "got 'luck'"),
    ],
)
def test_budgets_that_cannot_be(run: Run, arguments: tuple[str, ...], message: str) -> None:
    result = run("convert", "test_vit", "out", *SMALL, *arguments)
    assert result.code == 2
    assert message in result.error.replace("\n", " ")


def test_a_budget_out_of_reach_writes_nothing(run: Run, images: Path, tmp_path: Path) -> None:
    result = run("convert", "test_vit", "out", *SMALL, "--data-dir", images, "--target-macs", "0.01")
    assert result.code == 2
    assert "out of reach" in result.error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("policy", ["nonsense", "rand-x9", "augmix-x3"])
def test_a_policy_that_is_none_is_told_before_anything_is_opened(policy: str, run: Run) -> None:
    result = run("finetune", "no such model", "OUT", "--teacher", "nor this", "--data-dir", "nor that", "--aa", policy)
    assert result.code == 2
    assert f"--aa takes a policy of timm such as rand-m9-mstd0.5, got '{policy}'" in result.error
