"""The one place where errors become messages: bugs, interruptions, closed pipes, memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vitcompact.cli.console import Console
from vitcompact.errors import VerificationError

from .commands import Run


@pytest.fixture
def families_raise(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes the verb `families` raise."""

    def install(error: BaseException) -> None:
        def run(*args: object) -> None:
            raise error

        monkeypatch.setattr("vitcompact.cli.verbs.families.run", run)

    return install


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (VerificationError("they differ"), 5, "they differ"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 2, "--batch-size"),
        (MemoryError(), 2, "not enough memory"),
        (KeyError("boom"), 1, "bug"),
        (ValueError(), 1, "--verbose"),
    ],
)
def test_each_kind_of_error(
    run: Run, families_raise: Callable[[BaseException], None], error: BaseException, code: int, part: str
) -> None:
    families_raise(error)
    result = run("families", "--json")
    assert result.code == code
    assert part in result.error


def test_verbose_shows_the_traceback(run: Run, families_raise: Callable[[BaseException], None]) -> None:
    families_raise(KeyError("boom"))
    assert "Traceback" in run("families", "--verbose").err


def test_lists_of_numbers_as_timm_takes_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for verb in ("eval", "bench"):
        monkeypatch.setattr(
            f"vitcompact.cli.verbs.{verb}.run", lambda options, given, console: seen.append((options, given))
        )
    assert run("eval", "X", "--mean", "0.1", "0.2", "0.3", "--std=0.5").code == 0
    assert run("bench", "X", "-b", "1", "8").code == 0
    assert run("bench", "X", "--batch-size", "4,2").code == 0
    assert (seen[0][0].mean, seen[0][0].std) == ((0.1, 0.2, 0.3), (0.5,))
    assert seen[0][1] == {"source", "mean", "std"}
    assert [options.batch_sizes for options, _ in seen[1:]] == [(1, 8), (4, 2)]
    assert run("bench", "X", "-b", "many").code == 2
    assert run("eval", "X", "--mean", "nan").code == 2


def test_what_others_print_does_not_reach_stdout(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(options: object, given: object, console: Console) -> None:
        print("a conversion of timm says hello")  # noqa: T201
        console.result({"a": 1}, "a line")

    monkeypatch.setattr("vitcompact.cli.verbs.families.run", noisy)
    for words, out in ((("--json",), '{\n  "a": 1\n}\n'), ((), "a line\n")):
        result = run("families", *words)
        assert (result.code, result.out) == (0, out)
        assert "says hello" in result.err


def test_arguments_of_an_architecture_as_timm_takes_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("vitcompact.cli.verbs.eval.run", lambda options, given, console: seen.append(options))
    expected = {"reg_tokens": 4, "depths": (2, 2), "act_layer": "quick_gelu", "fc_norm": False}
    words = ("reg_tokens=4", "depths=(2, 2)", "act_layer=quick_gelu", "fc_norm=False")
    assert run("eval", "X", "--model-kwargs", *words, "--gp", "avg", "--input-size", "1", "64", "96").code == 0
    assert run("eval", "X", "--model-kwargs", ",".join(words), "--global-pool", "avg").code == 0
    Path("run.yaml").write_text(json.dumps({"model_kwargs": {**expected, "depths": [2, 2]}, "input_size": [1, 64, 96]}))
    assert run("eval", "X", "--config", "run.yaml").code == 0
    assert [options.model_kwargs for options in seen] == [expected] * 3
    assert [options.global_pool for options in seen] == ["avg", "avg", None]
    assert [options.input_size for options in seen] == [(1, 64, 96), None, (1, 64, 96)]
    assert run("eval", "X", "--model-kwargs", "four").code == 2


CLOSED_PIPE = """
import sys
from vitcompact.cli.app import main
from vitcompact.cli.verbs import families
def run(options, given, console):
    while True:
        console.result({"a": "line"}, "a line")
families.run = run
sys.exit(main(["families", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("option", ["--json", pytest.param("--quiet", marks=pytest.mark.sweep)])
def test_a_closed_pipe_is_no_error_message(option: str) -> None:
    words = [sys.executable, "-c", CLOSED_PIPE, option]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 141


@pytest.mark.parametrize(("cuda", "mps", "best"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_device_auto_is_the_best_that_is_there(
    cuda: bool, mps: bool, best: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)
    monkeypatch.setattr("vitcompact.cli.verbs.eval.run", lambda options, given, console: seen.append(options.device))
    assert f"--device auto: {best}" in run("eval", "X", "--device", "auto").err
    run("eval", "X", "--device", "cuda:1")
    run("eval", "X")
    assert seen == [best, "cuda:1", "cpu"]
