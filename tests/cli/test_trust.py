"""Nothing of the user's is lost, and stages are never paired with what they do not belong to."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vitcompact.checkpoint import load_source, save
from vitcompact.cli.workspace import STATE_NAME
from vitcompact.utils.locks import exclusive

from .commands import PAIR, SMALL, VIT, Result, Run, write_images


def tree(root: Path) -> dict[str, bytes | None]:
    """Everything below a folder, with its content."""
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


@pytest.fixture
def orig(weights: Path, tmp_path: Path) -> Path:
    """An original in our own layout: a directory that --overwrite would be allowed to replace."""
    from vitcompact.checkpoint import SourceOptions

    return save(
        load_source(str(weights), SourceOptions(model="test_vit", model_kwargs={"depth": 2})).model, tmp_path / "orig"
    )


Case = Callable[[Path, Path], tuple[object, ...]]
CASES: dict[str, Case] = {
    "convert onto its own source": lambda orig, images: ("convert", orig, orig),
    "convert onto the folder above its source": lambda orig, images: ("convert", orig, orig.parent),
    "convert onto a weights file's folder": lambda orig, images: (
        *("convert", orig / "model.safetensors", orig),
        *VIT,
    ),
    "convert onto its images": lambda orig, images: ("convert", orig, images, "--data-dir", images),
    "convert onto the folder above its images": lambda orig, images: (
        *("convert", orig, images.parent),
        *("--data-dir", images),
    ),
    "fold onto its model": lambda orig, images: ("fold", orig, orig),
    "finetune onto its model": lambda orig, images: ("finetune", orig, orig, "--data-dir", images),
    "finetune onto its teacher": lambda orig, images: (
        *("finetune", "nothing", orig),
        *("--teacher", orig, "--data-dir", images),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_overwrite_never_takes_what_the_job_reads(case: str, run: Run, orig: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "photos" / "mine", 2)
    before = tree(tmp_path)
    result = run(*CASES[case](orig, tmp_path / "photos" / "mine"), "--overwrite")
    assert result.code == 2
    assert "give another directory" in result.error
    assert tree(tmp_path) == before


def test_overwrite_does_not_take_a_folder_of_somebodys_work(run: Run, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "config.json").write_text("{}")
    (work / "thesis.tex").write_text("x")
    before = tree(tmp_path)
    result = run("convert", "test_vit", work, *SMALL, "--overwrite")
    assert result.code == 2
    assert "not overwritten" in result.error
    assert tree(tmp_path) == before


def test_the_workspace_and_the_recorded_original_are_kept(run: Run, orig: Path, tmp_path: Path) -> None:
    assert run("convert", orig, "--only", "ffn").code == 0
    before = tree(tmp_path)
    for out in (orig, tmp_path / "vitcompact-out"):
        refused = run("fold", "vitcompact-out/converted", out, "--overwrite")
        assert (refused.code, "give another directory" in refused.error) == (2, True)
    assert tree(tmp_path) == before


def test_reports_and_plans_replace_only_their_like(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("<html>my page</html>")
    (tmp_path / "mine.json").write_text('{"my": "data"}')
    refused = run("analyze", "test_vit", *SMALL, "--report", "mine.html")
    assert (refused.code, "was not drawn by vitcompact" in refused.error) == (2, True)
    refused = run("convert", "test_vit", "mine.json", *SMALL, "--dry-run")
    assert (refused.code, "holds no plan" in refused.error) == (2, True)
    assert (tmp_path / "mine.html").read_text() == "<html>my page</html>"
    assert (tmp_path / "mine.json").read_text() == '{"my": "data"}'
    for _ in range(2):
        assert run("analyze", "test_vit", *SMALL, "--report", "ours.html").code == 0
        assert run("convert", "test_vit", "ours.json", *SMALL, "--dry-run").code == 0


def test_a_folder_with_a_plan_of_somebody_is_no_workspace(run: Run, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("my plans")
    refused = run("convert", "test_vit", *SMALL, "--workdir", ".")
    assert (refused.code, "so . is no workspace" in refused.error) == (2, True)
    assert tree(tmp_path) == {"plan.json": b"my plans"}
    for _ in range(2):
        assert run("convert", "test_vit", *SMALL, "--dry-run").code == 0


def test_a_state_of_another_program_is_kept(run: Run, job: Path, images: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from torch import ones

    (tmp_path / "out-state").mkdir()
    save_file({"x": ones(1)}, tmp_path / "out-state" / "last.safetensors")
    refused = run("finetune", job / "converted", "out", "--data-dir", images, "--steps", "1", "-b", "8")
    assert (refused.code, "no training state of vitcompact" in refused.error) == (2, True)
    assert [path.name for path in (tmp_path / "out-state").iterdir()] == ["last.safetensors"]


@pytest.mark.parametrize("verb", ["analyze", "convert", "finetune", "fold"])
def test_one_verb_at_a_time_writes_into_a_workspace(verb: str, run: Run, job: Path) -> None:
    before = tree(job)
    words = [verb, *(("test_vit", *SMALL) if verb == "analyze" else ("--overwrite",))]
    script = (
        "import sys; from pathlib import Path; from vitcompact.utils.locks import exclusive\n"
        "with exclusive(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, job / STATE_NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        refused = run(*words)
        other.kill()
    assert (refused.code, "another run of vitcompact" in refused.error) == (2, True)
    with exclusive(job / STATE_NAME):
        pass
    assert tree(job) == before


def test_reading_verbs_do_not_wait(run: Run, job: Path, images: Path) -> None:
    with exclusive(job / STATE_NAME):
        assert run("eval", "--data-dir", images / "val").code == 0


def test_a_model_is_not_paired_with_another_original(run: Run, job: Path, images: Path, tmp_path: Path) -> None:
    """What two converts at once left behind: the model of the one beside the original of the other."""
    assert (
        run("convert", "test_vit", *SMALL, *PAIR, "--seed", "3", "--workdir", "other", "--data-dir", images).code == 0
    )
    mine, other = job / STATE_NAME, tmp_path / "other" / STATE_NAME
    state, foreign = json.loads(mine.read_text()), json.loads(other.read_text())
    state["source"] = foreign["source"]
    state["stages"]["convert"]["source"] = foreign["stages"]["convert"]["source"]
    mine.write_text(json.dumps(state))
    for words in (("finetune", "--overwrite", "--steps", "1"), ("fold", "--overwrite"), ("eval",), ("bench",)):
        result = run(*words)
        assert result.code == 2, words
        assert "vitcompact convert" in result.error


def rewrite_mean(orig: Path, photos: Path) -> None:
    config = json.loads((orig / "config.json").read_text())
    config["pretrained_cfg"]["mean"] = [0.1, 0.2, 0.3]
    (orig / "config.json").write_text(json.dumps(config))


def replace_images(orig: Path, photos: Path) -> None:
    shutil.rmtree(photos)
    write_images(photos, 4, size=41)


@pytest.mark.parametrize(
    ("change", "message"), [(rewrite_mean, "the settings"), (replace_images, "the images in")], ids=["mean", "images"]
)
def test_what_the_weights_do_not_tell_is_compared_too(
    change: Callable[[Path, Path], None], message: str, run: Run, orig: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    write_images(photos, 4)

    def again() -> list[Result]:
        return [run("convert", "--overwrite"), run("finetune", "--overwrite", "--steps", "1", "-b", "4")]

    assert run("analyze", orig, *PAIR, "--data-dir", photos).code == 0
    assert [result.code for result in again()] == [0, 0]
    change(orig, photos)
    for result in again():
        assert result.code == 2
        assert message in result.error
        assert "vitcompact analyze" in result.error
    if message == "the settings":
        refused = run("bench", "vitcompact-out/converted")
        assert (refused.code, "other settings" in refused.error) == (2, True)
    assert run("analyze", orig, *PAIR, "--data-dir", photos).code == 0
    assert run("convert", "--overwrite").code == 0


def test_another_teacher_is_named(run: Run, job: Path, orig: Path, images: Path) -> None:
    words = ("finetune", job / "converted", "out", "--data-dir", images, "--steps", "1", "-b", "8", "--overwrite")
    assert "the teacher has other" not in run(*words).err
    other = run("convert", "test_vit", "other", *SMALL, "--seed", "5", "--only", "ffn")
    assert other.code == 0
    result = run(*words, "--teacher", "other")
    assert (result.code, "the teacher has other weights" in result.err) == (0, True)
