"""Interrupted and resumed runs end with the weights of an uninterrupted one."""

from __future__ import annotations

import errno
import json
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vitcompact.errors import CheckpointError, Interrupted, UsageError
from vitcompact.training import TensorBatches, TrainOptions, finetune
from vitcompact.training.course import COURSE
from vitcompact.training.interrupt import SIGNALS, StopRequest
from vitcompact.training.keep import Keeper
from vitcompact.training.state import BEST_NAME, STATE_NAME, State, load_state, save_state

from .helpers import StopAfter, make_student, make_teacher, options, same_weights


@pytest.fixture
def stream(images: Tensor) -> TensorBatches:
    return TensorBatches(images, batch_size=8)


@pytest.mark.parametrize("opt", ["adamw", "muon", "sgd", "lamb", "nadamw"])
def test_resumed_run_is_bit_identical(
    opt: str, student: nn.Module, teacher: nn.Module, stream: TensorBatches, tmp_path: Path
) -> None:
    chosen = options(steps=8, opt=opt)
    whole = finetune(student, teacher, stream, options=chosen)
    with pytest.raises(Interrupted, match=r"after step 3 of 8; `resume='auto'` continues from") as caught:
        finetune(student, teacher, stream, options=chosen, state_dir=tmp_path, progress=StopAfter(3))
    assert caught.value.exit_code == 130
    resumed = finetune(student, teacher, stream, options=chosen, state_dir=tmp_path, resume="auto")
    assert resumed.steps == 8
    assert same_weights(whole.model, resumed.model)
    again = finetune(student, teacher, stream, options=chosen, resume=tmp_path)
    assert same_weights(whole.model, again.model)


def test_resume_with_random_depth_and_evaluation(images: Tensor, stream: TensorBatches, tmp_path: Path) -> None:
    teacher = make_teacher(drop_path_rate=0.3, proj_drop_rate=0.1)
    student = make_student(teacher)
    labels = torch.arange(24) % 5
    chosen = options(steps=8, eval_every=2, eval_share=1, save_minutes=1e-9)
    whole = finetune(student, teacher, stream, options=chosen, evaluation=[(images, labels)])
    evaluation = [(images, labels)]
    for stop in (1, 7):  # the first stop falls into the evaluation before training
        with pytest.raises(Interrupted):
            finetune(
                student,
                teacher,
                stream,
                options=chosen,
                evaluation=evaluation,
                state_dir=tmp_path,
                resume="auto",
                progress=StopAfter(stop, signal.SIGTERM),
            )
    resumed = finetune(
        student, teacher, stream, options=chosen, evaluation=evaluation, state_dir=tmp_path, resume="auto"
    )
    assert same_weights(whole.model, resumed.model)
    assert resumed.top1 == whole.top1
    assert resumed.best_step == whole.best_step


@pytest.mark.parametrize(("often", "saved"), [({"save_minutes": 1e-9}, 4), ({"save_interval": 3}, 3)])
def test_a_hard_kill_loses_no_more_than_the_last_interval(
    often: dict[str, Any],
    saved: int,
    student: nn.Module,
    teacher: nn.Module,
    stream: TensorBatches,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vitcompact.training.loop._SAVE_SHARE", 0)

    class Killed(BaseException):
        pass

    class Kill(StopAfter):
        def advance(self, amount: float = 1.0, note: str = "") -> None:
            self.left -= 1
            if self.left == 0:
                raise Killed

    chosen = options(steps=8, **often)
    whole = finetune(student, teacher, stream, options=chosen)
    with pytest.raises(Killed):
        finetune(student, teacher, stream, options=chosen, state_dir=tmp_path, progress=Kill(5))
    assert load_state(tmp_path / STATE_NAME).values["plan"]["step"] == saved
    resumed = finetune(student, teacher, stream, options=chosen, state_dir=tmp_path, resume="auto")
    assert same_weights(whole.model, resumed.model)


def test_only_one_complete_state_file_is_left(
    student: nn.Module, teacher: nn.Module, stream: TensorBatches, tmp_path: Path
) -> None:
    finetune(student, teacher, stream, options=options(save_minutes=1e-9), state_dir=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {STATE_NAME, *COURSE}
    assert load_state(tmp_path / STATE_NAME).values["plan"]["step"] == 6


def test_without_a_folder_an_interruption_says_that_nothing_is_kept(
    student: nn.Module, teacher: nn.Module, stream: TensorBatches
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="nothing was saved"):
        finetune(student, teacher, stream, options=options(), progress=StopAfter(2))
    assert signal.getsignal(signal.SIGINT) is before


def test_without_a_signal_the_handlers_are_those_of_before() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_acts_as_if_nobody_listened(number: signal.Signals) -> None:
    """Who presses Ctrl-C twice does not want to wait for the end of a step."""
    heard: list[int] = []
    before = signal.signal(number, lambda sent, _: heard.append(sent))
    try:
        with StopRequest() as stop:
            for requested, so_far in ((True, []), (True, [number])):
                signal.raise_signal(number)
                assert (stop.requested, heard) == (requested, so_far)
        signal.raise_signal(number)
        assert heard == [number, number]
    finally:
        signal.signal(number, before)


def test_a_state_of_another_run_is_refused_by_name(
    student: nn.Module, teacher: nn.Module, images: Tensor, stream: TensorBatches, tmp_path: Path
) -> None:
    finetune(student, teacher, stream, options=options(), state_dir=tmp_path)

    def resume(**kwargs: Any) -> None:
        given = {"model": student, "teacher": teacher, "batches": stream, "options": options(), **kwargs}
        model, original, batches = given.pop("model"), given.pop("teacher"), given.pop("batches")
        finetune(model, original, batches, state_dir=tmp_path, resume="auto", **given)

    with pytest.raises(UsageError, match=r"`lr` was \S+ and is 0\.5"):
        resume(options=options(lr=0.5))
    with pytest.raises(UsageError, match=r"`steps` was 6 and is 9"):
        resume(options=options(steps=9))
    with pytest.raises(UsageError, match="original"):
        resume(teacher=make_teacher(qk_norm=False, class_token=True).requires_grad_(False).apply(_disturb))
    with pytest.raises(UsageError, match="training images"):
        resume(batches=TensorBatches(images, batch_size=8, seed=1))
    resume(options=options(save_minutes=7))  # how often it is saved makes no other run


def test_a_rate_that_was_left_to_the_rule_is_not_one_that_was_given(
    student: nn.Module, teacher: nn.Module, stream: TensorBatches, tmp_path: Path
) -> None:
    left = TrainOptions(steps=2, amp=False)
    finetune(student, teacher, stream, options=left, state_dir=tmp_path)
    with pytest.raises(UsageError, match=r"`lr` was not given and is 0\.0001"):
        finetune(student, teacher, stream, options=replace(left, lr=1e-4), state_dir=tmp_path, resume="auto")
    finetune(student, teacher, stream, options=replace(left, opt="adamw"), state_dir=tmp_path, resume="auto")


def _disturb(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def test_beginning_anew_forgets_an_earlier_run(
    student: nn.Module, teacher: nn.Module, images: Tensor, stream: TensorBatches, tmp_path: Path
) -> None:
    save_state(State({"x": torch.zeros(1)}, {"value": 1e9, "step": 1}), tmp_path / BEST_NAME)
    result = finetune(
        student, teacher, stream, options=options(), state_dir=tmp_path, evaluation=[(images, torch.arange(24) % 5)]
    )
    assert result.best_step is None


def test_beginning_anew_keeps_a_run_that_did_not_end(
    student: nn.Module,
    teacher: nn.Module,
    stream: TensorBatches,
    images: Tensor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Hours may lie in it, and `resume` is easily left out; it goes on as if nothing had come between."""
    chosen = options(steps=8, eval_every=1, eval_share=1)
    labelled = [(images, torch.arange(24) % 5)]

    def go(**how: Any) -> nn.Module:
        return finetune(student, teacher, stream, options=chosen, evaluation=labelled, **how).model

    whole = go()
    with pytest.raises(Interrupted):
        go(state_dir=tmp_path, progress=StopAfter(6))
    there = {path.name for path in tmp_path.iterdir()}
    assert there == {STATE_NAME, BEST_NAME, *COURSE}
    finetune(student, teacher, stream, options=options(steps=2), state_dir=tmp_path)
    assert f"`resume='{tmp_path / 'earlier'}'`" in caplog.text
    assert {path.name for path in (tmp_path / "earlier").iterdir()} == there
    assert same_weights(whole, go(state_dir=tmp_path, resume=tmp_path / "earlier"))
    finetune(student, teacher, stream, options=options(steps=1), state_dir=tmp_path)  # what ended is not kept
    assert {path.name for path in (tmp_path / "earlier").iterdir()} == there
    assert {path.name for path in tmp_path.iterdir()} == {STATE_NAME, "earlier", *COURSE}


def test_going_on_elsewhere_loses_no_other_run(
    student: nn.Module, teacher: nn.Module, stream: TensorBatches, tmp_path: Path
) -> None:
    """A state from another folder goes on where a run has ended, not where one waits to be resumed."""
    one, other = tmp_path / "one", tmp_path / "other"

    def go(folder: Path, **how: Any) -> nn.Module:
        return finetune(student, teacher, stream, options=options(steps=4), state_dir=folder, **how).model

    for folder in (one, other):
        with pytest.raises(Interrupted):
            go(folder, progress=StopAfter(2))
    left = {path.name: path.read_bytes() for path in other.iterdir()}
    with pytest.raises(UsageError, match="other holds the state of another run that did not end, and would lose it"):
        go(other, resume=one)
    assert {path.name: path.read_bytes() for path in other.iterdir()} == left
    whole = go(other, resume="auto")
    with pytest.raises(Interrupted):
        go(other, resume=one, progress=StopAfter(1))
    assert (other / "replaced" / STATE_NAME).exists()
    assert same_weights(whole, go(other, resume="auto"))
    assert {path.name for path in other.iterdir()} == {STATE_NAME, *COURSE}


def test_what_a_run_left_that_ended_waits_until_the_next_one_has(
    student: nn.Module, teacher: nn.Module, stream: TensorBatches, tmp_path: Path
) -> None:
    finetune(student, teacher, stream, options=options(steps=2), state_dir=tmp_path)
    left = (tmp_path / STATE_NAME).read_bytes()
    with pytest.raises(Interrupted):
        finetune(student, teacher, stream, options=options(steps=4), state_dir=tmp_path, progress=StopAfter(1))
    assert (tmp_path / "replaced" / STATE_NAME).read_bytes() == left
    finetune(student, teacher, stream, options=options(steps=4), state_dir=tmp_path, resume="auto")
    assert {path.name for path in tmp_path.iterdir()} == {STATE_NAME, *COURSE}


@pytest.mark.parametrize(("ended", "aside"), [(False, "earlier"), (True, "replaced")])
def test_what_a_run_was_asked_for_goes_where_its_state_goes(
    ended: bool,
    aside: str,
    student: nn.Module,
    teacher: nn.Module,
    stream: TensorBatches,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that ends before it has written its own down leaves those of the run before with its state."""

    def go(number: int, **how: Any) -> None:
        asked = {"options": {"steps": number}}
        finetune(student, teacher, stream, options=options(steps=4), state_dir=tmp_path, asked=asked, **how)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    def told(folder: Path) -> int:
        return int(json.loads((folder / "options.json").read_text())["options"]["steps"])

    with nullcontext() if ended else pytest.raises(Interrupted):
        go(1, **({} if ended else {"progress": StopAfter(2)}))
    assert told(tmp_path) == 1
    monkeypatch.setattr(Keeper, "note_options", killed)
    with pytest.raises(KeyboardInterrupt):
        go(2)
    monkeypatch.undo()
    assert told(tmp_path / aside) == 1
    assert (tmp_path / aside / STATE_NAME).exists()
    assert not (tmp_path / "options.json").exists()
    with pytest.raises(Interrupted):
        go(3, progress=StopAfter(2))
    assert (told(tmp_path), told(tmp_path / aside)) == (3, 1)


def test_somebodys_options_are_not_replaced(
    student: nn.Module, teacher: nn.Module, stream: TensorBatches, tmp_path: Path
) -> None:
    own = tmp_path / "options.json"
    own.write_text('{"mine": true}')
    finetune(student, teacher, stream, options=options(steps=1), state_dir=tmp_path)  # writes none
    with pytest.raises(UsageError, match=r"options.json was not written by vitcompact, and would be replaced"):
        finetune(student, teacher, stream, options=options(steps=1), state_dir=tmp_path, asked={"options": {}})
    finetune(student, teacher, stream, options=options(steps=1), state_dir=tmp_path)
    assert own.read_text() == '{"mine": true}'


def test_somebodys_files_are_not_replaced_by_an_earlier_state(
    student: nn.Module, teacher: nn.Module, stream: TensorBatches, tmp_path: Path
) -> None:
    own = tmp_path / "replaced" / "thesis.txt"
    own.parent.mkdir()
    own.write_text("mine")
    finetune(student, teacher, stream, options=options(steps=1), state_dir=tmp_path)
    with pytest.raises(UsageError, match="replaced is where an earlier state goes, and it holds other files"):
        finetune(student, teacher, stream, options=options(steps=1), state_dir=tmp_path)
    assert own.read_text() == "mine"


def test_the_best_weights_are_those_of_the_run_that_is_continued(
    student: nn.Module, teacher: nn.Module, stream: TensorBatches, images: Tensor, tmp_path: Path
) -> None:
    """Another folder for the states has no part in it, whatever lies there."""
    chosen = options(steps=8, eval_every=1, eval_share=1)
    labelled = [(images, torch.arange(24) % 5)]
    with pytest.raises(Interrupted):
        finetune(
            *(student, teacher, stream), options=chosen, evaluation=labelled, state_dir=tmp_path, progress=StopAfter(6)
        )
    best = load_state(tmp_path / BEST_NAME).values
    other = tmp_path / "other"
    other.mkdir()
    save_state(State({"x": torch.zeros(1)}, {"value": 1e9, "step": 1}), other / BEST_NAME)
    finetune(student, teacher, stream, options=chosen, evaluation=labelled, state_dir=other, resume=tmp_path)
    assert best["value"] <= load_state(other / BEST_NAME).values["value"] <= 100


def test_missing_and_damaged_states(
    student: nn.Module, teacher: nn.Module, stream: TensorBatches, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no training state at"):
        finetune(student, teacher, stream, options=options(), resume=tmp_path / "absent")
    with pytest.raises(UsageError, match="needs state_dir"):
        finetune(student, teacher, stream, options=options(), resume="auto")
    (tmp_path / STATE_NAME).write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match="delete it to start anew"):
        finetune(student, teacher, stream, options=options(), state_dir=tmp_path, resume="auto")


def test_a_disk_that_refuses_does_not_end_the_run(
    student: nn.Module,
    teacher: nn.Module,
    stream: TensorBatches,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*args: object, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    result = finetune(student, teacher, stream, options=options(), state_dir=tmp_path)
    assert result.steps == 6
    assert {path.name for path in tmp_path.iterdir()} == {*COURSE}
    with pytest.raises(UsageError, match="is a file"):
        finetune(student, teacher, stream, options=options(), state_dir=__file__)
    assert "could not be saved" in caplog.text


def test_states_hold_json_and_shared_tensors(tmp_path: Path) -> None:
    weight = torch.arange(6.0)
    state = State({"a.x": weight, "b.x": weight, "b.y": weight[:2]}, {"note": {"deep": [1, None, "ö"]}})
    save_state(state, tmp_path / "s.safetensors")
    read = load_state(tmp_path / "s.safetensors")
    assert read.values["note"] == json.loads('{"deep": [1, null, "\\u00f6"]}')
    assert read.take("b").keys() == {"x", "y"}
    assert torch.equal(read.take("b")["y"], weight[:2])


@pytest.mark.parametrize("values", [{"version": 10**6}, {}, [1], None])
def test_states_of_other_releases_are_refused(values: Any, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    tensors = {"x": torch.zeros(1)}  # safetensors 0.4 reads no file without any
    save_state(State(dict(tensors), {"note": 1}), path)
    with safe_open(path, framework="pt") as file:
        key = next(iter(file.metadata()))
    save_file(tensors, path, metadata={key: json.dumps(values)})
    with pytest.raises(CheckpointError, match="not a training state of this release"):
        load_state(path)
