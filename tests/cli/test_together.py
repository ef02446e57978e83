"""The command line in two processes: one plan, one result, one message, one exit code."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.together import Ended, Started, commands, ended, eventually, started
from vitcompact.cli.app import main

from .commands import PAIR, VIT, write_images


def job(weights: Path, images: Path) -> tuple[list[str], ...]:
    """A chain in a workspace, and a conversion for a budget that is judged."""
    read = [str(weights), *VIT, "--data-dir", str(images)]
    return (
        ["analyze", *read, *PAIR, "-q"],
        ["convert", "-q"],
        ["finetune", "--steps", "3", "-b", "7", "--eval-share", "1", "-q"],
        ["convert", read[0], "budget", *read[1:], "--target-macs", "0.8", "-q"],
        ["eval", "budget", "--data-dir", str(images / "val"), "--json", "-q"],
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> tuple[Path, Path, list[Ended]]:
    """Folders of the job in one process and in two, and how the two have ended.

    With 32 images and biases that are not zero: a tensor that fewer hardly determine, or that is nothing but a
    small correction of zero, differs by what 32 bits round of the layer before it.
    """
    given, one, two = (tmp_path_factory.mktemp(name) for name in ("given", "one", "two"))
    model, images = given / "model.safetensors", given / "images"
    save_file(
        {name: value + 0.05 * torch.randn_like(value) for name, value in sorted(load_file(weights).items())}, model
    )
    write_images(images / "train", 16)
    write_images(images / "val", 4)
    processes = started(commands, *job(model, images), folder=two)
    before = Path.cwd()
    os.chdir(one)
    try:
        with open("said.json", "w", encoding="utf-8") as file, pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdout", file)
            assert commands(*job(model, images)) == 0
    finally:
        os.chdir(before)
    return one, two, ended(processes)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_only_the_first_process_speaks(done: tuple[Path, Path, list[Ended]]) -> None:
    first, second = done[2]
    assert (first.code, second.code) == (0, 0), first.err
    assert (second.out, second.err) == ("", "")


def test_the_plan_is_that_of_one_process(done: tuple[Path, Path, list[Ended]]) -> None:
    one, two, _ = done
    for out in ("vitcompact-out/converted", "budget"):
        plans = [read(folder / out / "config.json")["model_args"] for folder in (one, two)]
        assert plans[0] == plans[1]
        first, second = (load_file(folder / out / "model.safetensors") for folder in (one, two))
        assert first.keys() == second.keys()
        changes = {name: (tensor.double() - second[name].double()).norm() for name, tensor in first.items()}
        sizes = {name: tensor.double().norm() for name, tensor in first.items()}
        assert sum(change**2 for change in changes.values()) <= 1e-12 * sum(size**2 for size in sizes.values())
        assert all(change <= 1e-5 * sizes[name] for name, change in changes.items())
        told = [read(folder / out / "vitcompact.json")["results"]["fidelity"] for folder in (one, two)]
        assert told[0]["num_samples"] == told[1]["num_samples"] > 0
        assert told[0]["cosine"] == pytest.approx(told[1]["cosine"], abs=1e-6)
    similar = [read(folder / "vitcompact-out" / "analysis.json")["layers"] for folder in (one, two)]
    for first, second in zip(*similar, strict=True):
        heads = [[(pair["head"], pair["parents"]) for pair in each["hallucinated"]] for each in (first, second)]
        assert heads[0] == heads[1]
        assert torch.tensor(first["matrix"]).allclose(torch.tensor(second["matrix"]), atol=2e-6)


def test_a_workspace_is_left_as_by_one_process(done: tuple[Path, Path, list[Ended]]) -> None:
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in done[:2]]
    streams = [name for name in names[1] if name.endswith((".out", ".err"))]
    assert [name for name in names[1] if name not in streams] == [name for name in names[0] if name != "said.json"]


def test_images_are_counted_once(done: tuple[Path, Path, list[Ended]]) -> None:
    texts = (done[0] / "said.json").read_text(), done[2][0].out
    one, two = (json.loads(text[text.index("{\n") :]) for text in texts)
    for name in ("num_samples", "top1", "top5", "agreement", "skipped", "reference"):
        assert one[name] == two[name]
    assert one["cosine"] == pytest.approx(two["cosine"], abs=1e-5)  # each of its own conversion


def with_own_words(words: Sequence[Sequence[str]]) -> int:
    """The words of this process, as if its machine were another one."""
    return main(list(words[int(os.environ["RANK"])]))


REFUSED: dict[str, tuple[Any, ...]] = {
    "no data there": (
        ["convert", "WEIGHTS", "new", *VIT, *PAIR, "--data-dir"],
        ("IMAGES", "nowhere"),
        "error: no such folder or tar: nowhere",
    ),
    "other images": (
        ["convert", "WEIGHTS", "new", *VIT, *PAIR, "--data-dir"],
        ("IMAGES", "IMAGES/val"),
        "error: the processes of this run do not have the same calibration images: 1 has another than 0 (16 and 8)",
    ),
    "an output that exists": (
        ["convert", "WEIGHTS", "there", *VIT, *PAIR, "--data-dir"],
        ("IMAGES", "IMAGES"),
        "there exists; give another directory, or --overwrite",
    ),
    "too few images": (
        ["convert", "WEIGHTS", "new", *VIT, *PAIR, "--data-dir", "IMAGES", "--num-samples"],
        ("6", "6"),
        "error: 6 calibration images cannot be shared by 2 processes",
    ),
    "no such option": (
        ["convert", "--nonsense"],
        ("", ""),
        "error: No such option",
        "--nonsense",
    ),
    "another verb": (["fold", "WEIGHTS"], ("there", "there"), "error: fold runs in one process: start it without"),
}


@pytest.mark.parametrize("case", ["no data there", pytest.param("an output that exists", marks=pytest.mark.broad)])
def test_a_failure_of_one_ends_all(case: str, weights: Path, images: Path, tmp_path: Path) -> None:
    refused(case, weights, images, tmp_path)


@pytest.mark.broad
@pytest.mark.parametrize("case", [case for case in REFUSED if case not in ("no data there", "an output that exists")])
def test_what_all_refuse_is_said_once(case: str, weights: Path, images: Path, tmp_path: Path) -> None:
    refused(case, weights, images, tmp_path)


def refused(case: str, weights: Path, images: Path, folder: Path) -> None:
    words, own, *messages = REFUSED[case]
    names = {"WEIGHTS": str(weights), "IMAGES": str(images), "IMAGES/val": str(images / "val")}
    lines = [[names.get(word, word) for word in (*words, last)] for last in own]
    (folder / "there").mkdir()
    (folder / "there" / "kept.txt").write_text("kept")
    found = ended(started(with_own_words, lines, folder=folder))
    assert [each.code for each in found] == [2, 2]
    assert not any(each.out for each in found)
    said = "".join(each.err for each in found)
    assert said.count("error: ") == 1
    assert all(message in said for message in messages)
    assert "Traceback" not in said
    assert not (folder / "new").exists()


@pytest.mark.broad
def test_a_polite_kill_of_one_keeps_a_state(done: tuple[Path, Path, list[Ended]], images: Path, tmp_path: Path) -> None:
    words = ["finetune", str(done[0] / "budget"), "new", "--data-dir", str(images), "--steps", "100000", "-b", "8"]
    processes = started(commands, words, folder=tmp_path)
    steps = tmp_path / "new-state" / "steps.jsonl"
    eventually(lambda: steps.exists() and '"step": 1' in steps.read_text())
    os.kill(processes[1].process.pid or 0, signal.SIGTERM)
    first, second = ended(processes)
    assert (first.code, second.code) == (130, 130)
    assert (first.err + second.err).count("error: interrupted after step") == 1
    assert (tmp_path / "new-state" / "last.safetensors").exists()
    resumed = ended(started(commands, [*words, "--resume", "auto", "--max-minutes", "0.1"], folder=tmp_path))
    assert "belongs to another run: `steps`" not in resumed[0].err


def waiting(rank: int, port: int, folder: Path) -> Started:
    """One process of two, which waits for the other."""
    place = {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_PORT": str(port)}
    return started(commands, ["eval", "somewhere"], folder=folder, world=1, own=[place])[0]


def terminated(process: Started) -> None:
    began = time.monotonic()
    os.kill(process.process.pid or 0, signal.SIGTERM)
    assert ended([process]) == [Ended(130, "", "error: ended by SIGTERM\n")]
    assert time.monotonic() - began < 20


def test_the_first_hears_a_signal_while_it_waits_for_the_others(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    process = waiting(0, address[1], tmp_path)

    def listening() -> bool:
        with socket.socket() as other:
            return other.connect_ex(address) == 0

    eventually(listening)
    terminated(process)


@pytest.mark.broad
def test_another_hears_a_signal_while_it_waits_for_the_first(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = waiting(1, silent.getsockname()[1], tmp_path)
        silent.settimeout(60)
        with silent.accept()[0]:
            terminated(process)


def lost(words: Sequence[str]) -> int:
    """The second process is killed before the first exchange."""
    if os.environ["RANK"] == "1":
        from vitcompact.utils import processes

        processes.Processes.gathered = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment, method-assign]
    return main(list(words))


@pytest.mark.broad
def test_a_killed_process_ends_the_others(weights: Path, images: Path, tmp_path: Path) -> None:
    words = ["convert", str(weights), "new", *VIT, *PAIR, "--data-dir", str(images)]
    first, second = ended(started(lost, words, folder=tmp_path))
    assert second.code == -signal.SIGKILL
    assert first.code == 2
    assert "error: another process of this run has gone or did not answer in time (--dist-timeout)" in first.err
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".err", ".err", ".out", ".out"]
