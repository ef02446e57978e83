"""What the workspace remembers, and what it refuses to go on from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from vitcompact.checkpoint import Provenance, load, read_record
from vitcompact.cli import workspace as module
from vitcompact.cli.verbs.common import complete
from vitcompact.cli.workspace import Source, Workspace
from vitcompact.errors import UsageError
from vitcompact.utils.files import write_file

from .commands import Run

SOURCE = Source("vit", "a" * 64, {"num_classes": 2})


def leave(space: Workspace, verb: str, weights: bytes = b"weights") -> Path:
    """What a verb leaves behind."""
    out = space.out(verb)
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.safetensors").write_bytes(weights)
    space.record(stage=(verb, out))
    return out


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    space = Workspace(tmp_path / "space")
    space.record(source=SOURCE)
    return space


def test_nothing_is_written_before_something_is_recorded(tmp_path: Path) -> None:
    Workspace(tmp_path / "space")
    assert not (tmp_path / "space").exists()


def test_everything_comes_back(space: Workspace) -> None:
    space.record(data={"data_dir": "x", "mean": (0.5, 0.5)}, selection={"ratio": 0.25})
    leave(space, "convert")
    again = Workspace(space.path)
    assert again.source() == SOURCE
    assert again.state.data == {"data_dir": "x", "mean": [0.5, 0.5]}
    assert again.state.selection == {"ratio": 0.25}
    assert again.input_of("finetune") == space.out("convert")
    assert {path.name for path in space.path.iterdir()} == {"workspace.json", "converted"}


def test_fold_prefers_finetuned(space: Workspace) -> None:
    converted = leave(space, "convert")
    assert space.input_of("fold") == converted
    finetuned = leave(space, "finetune")
    assert space.input_of("fold") == finetuned
    assert space.latest() == ("finetune", finetuned)


def test_latest_is_what_was_written_last(space: Workspace) -> None:
    for verb in ("convert", "finetune", "fold"):
        leave(space, verb)
    assert space.latest()[0] == "fold"
    leave(space, "convert")
    assert space.latest()[0] == "convert"


def test_converted_again_after_finetuning(space: Workspace) -> None:
    leave(space, "convert")
    leave(space, "finetune")
    leave(space, "convert")
    with pytest.raises(UsageError, match=r"newer.*vitcompact finetune"):
        space.input_of("fold")
    leave(space, "finetune")
    space.input_of("fold")


def test_a_stage_changed_by_others(space: Workspace) -> None:
    out = leave(space, "convert")
    (out / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UsageError, match="changed since 'vitcompact convert'"):
        space.input_of("finetune")
    (out / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="is gone"):
        space.latest()


def test_another_source(space: Workspace) -> None:
    leave(space, "convert")
    space.record(source=Source("vit", "b" * 64))
    with pytest.raises(UsageError, match="vitcompact convert"):
        space.input_of("finetune")
    space.record(source=SOURCE)
    space.input_of("finetune")


def test_untrained_sources_are_told_apart_by_their_options(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    space.record(source=Source("vit", None, {"seed": 0}))
    leave(space, "convert")
    space.record(source=Source("vit", None, {"seed": 1}))
    with pytest.raises(UsageError, match="vitcompact convert"):
        space.latest()


def test_source_that_changed(space: Workspace) -> None:
    loaded = Provenance("vit", "file", "test_vit", "vit.pth", "a" * 64, 1, settings="1")
    space.check_source(loaded)
    with pytest.raises(UsageError, match=r"the weights of vit have changed.*vitcompact analyze"):
        space.check_source(replace(loaded, sha256="c" * 64))
    space.record(source=replace(SOURCE, settings="2"))
    with pytest.raises(UsageError, match=r"the settings .* of vit have changed.*vitcompact analyze"):
        space.check_source(loaded)


def test_nothing_recorded(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    with pytest.raises(UsageError, match="vitcompact analyze SOURCE"):
        space.source()
    with pytest.raises(UsageError, match="vitcompact convert"):
        space.latest()
    for verb in ("finetune", "fold"):
        with pytest.raises(UsageError, match="vitcompact convert"):
            space.input_of(verb)


def test_output_elsewhere_is_found_again(space: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "elsewhere"
    out.mkdir()
    (out / "model.safetensors").write_bytes(b"weights")
    space.record(stage=("convert", out))
    monkeypatch.chdir(space.path)
    assert Workspace(space.path).input_of("fold").samefile(out)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 2}', "null"])
def test_damaged_state(tmp_path: Path, content: str) -> None:
    (tmp_path / "workspace.json").write_text(content)
    with pytest.raises(UsageError, match="damaged"):
        Workspace(tmp_path)


def test_a_file_is_no_workspace(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        Workspace(tmp_path / "file")


def test_unknown_stages_of_a_newer_release_are_left_out(space: Workspace) -> None:
    leave(space, "convert")
    path = space.path / "workspace.json"
    state = json.loads(path.read_text())
    state["stages"]["export"] = state["stages"]["convert"]
    path.write_text(json.dumps(state))
    assert list(Workspace(space.path).state.stages) == ["convert"]


def test_files_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_file(path, "first")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vitcompact.utils.files.os.fsync", fail)
    with pytest.raises(UsageError, match="disk is full"):
        write_file(path, "second")
    assert path.read_text() == "first"
    assert [item.name for item in path.parent.iterdir()] == ["file.txt"]


def test_how_a_file_is_read_travels_with_the_workspace(run: Run, tmp_path: Path) -> None:
    """A file with two models, and a pooling that only the options tell, is read the same by every verb."""
    model = timm.create_model("test_vit", num_classes=2, img_size=32, global_pool="avg", fc_norm=False)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    torch.save({"student": zeros, "teacher": model.state_dict()}, tmp_path / "w.pth")
    words = ("--model", "test_vit", "--gp", "avg", "--model-kwargs", "fc_norm=False")
    assert run("analyze", "w.pth", *words).code == 2
    result = run("analyze", "w.pth", *words, "--state-key", "teacher")
    assert result.code == 0
    assert "w.pth (teacher) is read as test_vit: " in result.err
    result = run("convert", "--ratio", "0.5")
    assert result.code == 0
    assert "--state-key teacher" in result.err
    record = read_record("vitcompact-out/converted")
    assert record.provenance is not None
    assert record.provenance.read_as is not None
    assert record.provenance.read_as["global_pool"] == "avg"
    assert load("vitcompact-out/converted").global_pool == "avg"


def test_a_verb_records_what_it_leaves_in_one_step(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended in between, its model would stand beside the images and the choice of the run before."""
    out = leave(space, "convert")
    written: list[Path] = []

    def noted(path: Path, content: str) -> None:
        written.append(path)
        write_file(path, content)

    monkeypatch.setattr(module, "write_file", noted)
    space.record(source=SOURCE, data={"data_dir": "y"}, images="i", selection={"ratio": 0.5}, stage=("fold", out))
    assert written == [space.path / "workspace.json"]
    again = Workspace(space.path).state
    assert (again.data, again.images, again.selection) == ({"data_dir": "y"}, "i", {"ratio": 0.5})
    assert again.stages["fold"].source == SOURCE.sha256


def test_what_fails_after_the_model_says_that_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    there = pytest.raises(UsageError, match=r"cannot write .*; the model itself is complete in out")
    with there as refused, complete(Path("out")):
        write_file(tmp_path / "file" / "plan.json", "x")
    assert "nothing was written" not in str(refused.value)
