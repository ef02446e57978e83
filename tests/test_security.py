"""docs/security.md: each line of the threat model names a test that exists, and the limits are those of the code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.fuzzing import sandbox
from vitcompact.data.decode import MAX_PIXELS
from vitcompact.errors import MAX_LINES

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
TESTS = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)


@pytest.mark.parametrize(("file", "name"), TESTS, ids=[name for _, name in TESTS])
def test_each_line_has_its_test(file: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), name


def test_the_limits_are_those_of_the_code() -> None:
    assert len(TESTS) == 29
    model = TEXT.partition("## The fuzzer")[0]
    rows = [line for line in model.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 28
    assert f"**{sandbox.MAX_BYTES >> 30} GiB**" in TEXT
    assert f"**{sandbox.MAX_SECONDS:.0f} seconds**" in TEXT
    assert f"{MAX_PIXELS // 10**6} million pixels" in TEXT
    assert MAX_LINES == 3


def test_the_release_script_passes_nothing_that_it_has_not_looked_up() -> None:
    script = ROOT / ".ci" / "release"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert "--strict" in text
    assert "cyclonedx-json" in text
    assert ".ci/floors.py" in text
