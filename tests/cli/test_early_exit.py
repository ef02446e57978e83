"""Ctrl-C while torch is loading, made certain by a torch that interrupts its own loading."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vitcompact
from vitcompact.utils.early_exit import is_program

INTERRUPTING = """import os, signal
os.kill(os.getpid(), signal.SIGINT)
for _ in range(10**9): pass
"""


@pytest.mark.parametrize("how", ["module", "script", "library"])
def test_an_interrupt_while_loading(how: str, tmp_path: Path) -> None:
    """The command line says one line and leaves with 130; as a library, the caller's handlers decide."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(INTERRUPTING)
    script = tmp_path / "vitcompact"
    script.write_text("import sys\nfrom vitcompact.cli.app import main\nsys.exit(main())\n")
    words = {
        "module": ["-m", "vitcompact"],
        "script": [str(script)],
        "library": ["-c", "import vitcompact; vitcompact.load"],
    }
    package = Path(vitcompact.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, *words[how], "families"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{package}"},
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    if how == "library":
        assert "KeyboardInterrupt" in done.stderr
    else:
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


def test_an_interrupt_while_python_ends(tmp_path: Path) -> None:
    script = tmp_path / "vitcompact"
    script.write_text(
        "import atexit, os, signal, sys\nfrom vitcompact.cli.app import main\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\nsys.exit(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(vitcompact.__file__).parents[1])}
    words = [sys.executable, str(script), "fold", "--nonsense"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "orig_argv", "ours"),
    [
        (["-m"], ["python", "-m", "vitcompact", "demo"], True),
        (["/usr/bin/vitcompact", "demo"], ["python", "/usr/bin/vitcompact", "demo"], True),
        (["C:/x/vitcompact.exe"], ["python", "C:/x/vitcompact.exe"], True),
        (["-m"], ["python", "-m", "trainer", "vitcompact"], False),
        (["train.py"], ["python", "train.py"], False),
        ([""], ["python"], False),
        ([], ["python", "-m"], False),
    ],
)
def test_who_is_the_program(argv: list[str], orig_argv: list[str], ours: bool) -> None:
    assert is_program(argv, orig_argv) is ours
