"""Every small file that a command reads, replaced by what a stranger may leave there: one message, exit 2 or 4."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vitcompact

from .commands import Run

READERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "config.json": ("vitcompact-out/folded/config.json", ("fold", "vitcompact-out/folded", "again")),
    "vitcompact.json": ("vitcompact-out/converted/vitcompact.json", ("fold",)),
    "workspace.json": ("vitcompact-out/workspace.json", ("fold",)),
    "--plan": ("plan.json", ("convert", "--plan", "plan.json", "--overwrite")),
    "--config": ("job.yaml", ("fold", "--config", "job.yaml")),
}
"""By name: the file, and a command that reads it."""


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


CONTENTS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "device": device,
    "folder": Path.mkdir,
    "huge": huge,
    "nested": text("[" * 100_000),
    "nested_objects": text('{"a":' * 5_000 + "1" + "}" * 5_000),
    "bytes": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "list": text("[1, 2]"),
    "number": text("7"),
    "long_number": text("9" * 5_000),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("reader", READERS)
def test_whatever_lies_there(reader: str, content: str, run: Run, job: Path) -> None:
    name, words = READERS[reader]
    path = job.parent / name
    path.unlink(missing_ok=True)
    CONTENTS[content](path)
    result = run(*words)
    assert result.code in (2, 4)
    assert result.error
    assert len(result.err.splitlines()) <= 3, result.err
    assert sorted(path.name for path in job.parent.iterdir()) == sorted({"vitcompact-out", name.split("/")[0]})


ALIASES = "\n".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9) if i else 'lol'}]" for i in range(9))


def test_yaml_whose_aliases_multiply(run: Run, job: Path) -> None:
    (job.parent / "job.yaml").write_text(f"{ALIASES}\nratio: *x8\n")
    result = run("fold", "--config", "job.yaml")
    assert (result.code, "aliases" in result.error) == (2, True)
    card = job / "folded" / "README.md"
    for front_matter in (ALIASES, "[" * 50_000, "license: &a [*a]"):
        card.write_text(f"---\n{front_matter}\n---\n")
        vitcompact.load(job / "folded")
    card.unlink()
    os.mkfifo(card)
    vitcompact.load(job / "folded")


WRONG: tuple[Any, ...] = (None, True, 7, -1, 2.5, "x", [], [[]], {}, {"x": []}, 10**30, "\x1b[31m")


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document, a few levels deep."""
    items = list(document.items()) if isinstance(document, dict) else []
    items += list(enumerate(document)) if isinstance(document, list) else []
    for key, value in items:
        yield (*path, key)
        if len(path) < 5:
            yield from places(value, (*path, key))


def replaced(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(document))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return copy


def test_wrong_values_in_a_workspace(run: Run, job: Path) -> None:
    """Each place of the document in turn, with a value that changes with it: done, or one message."""
    path = job / "workspace.json"
    document = json.loads(path.read_text())
    for number, place in enumerate(places(document)):
        path.write_text(json.dumps(replaced(document, place, WRONG[number % len(WRONG)])))
        result = run("eval", "--num-samples", "1") if number % 2 else run("fold")  # `folded` exists: nothing is made
        assert result.code in (0, 2, 4), (place, WRONG[number % len(WRONG)], result.err)
        assert "Traceback" not in result.err


@pytest.mark.parametrize("name", ["plan", "record"])
def test_wrong_values_in_plans_and_records(name: str, job: Path) -> None:
    document = json.loads((job / "converted" / "vitcompact.json").read_text())
    document.pop("places")  # where paths lie is read before, with the file's folder
    document["plan"]["layers"] = document["plan"]["layers"][:2] if name == "plan" else []
    document = document["plan"] if name == "plan" else document
    read: Callable[[Any], Any] = vitcompact.Plan.from_json if name == "plan" else _record
    assert json.loads(json.dumps(read(document).to_json())) == document
    accepted = 0
    for place in places(document):
        for value in WRONG:
            changed = replaced(document, place, value)
            try:
                again = json.loads(json.dumps(read(changed).to_json()))
            except vitcompact.VitCompactError:
                continue
            assert again == changed, (place, value)  # what is accepted is what was read
            accepted += 1
    assert accepted


def _record(data: Any) -> Any:
    from vitcompact.checkpoint.record import Record

    return Record.from_json(data)
