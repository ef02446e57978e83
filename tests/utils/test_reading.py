"""The door for small files: whatever lies there is read within bounds, or is an OSError or a ValueError at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vitcompact.errors import UsageError
from vitcompact.utils.plain_yaml import parse_yaml
from vitcompact.utils.reading import name_errors, parse_json, read_json, read_small, shortened, user_path

LINES = "\n".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9) if i else 'lol'}]" for i in range(9))
"""Nine lists of nine aliases each: 9^8 values in 500 characters."""


def big(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
        (Path.mkdir, "no regular file"),
        (big, "larger than"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "utf-8"),
        (lambda path: path.write_text("[" * 100_000), "nested deeper"),
        (lambda path: path.write_text('{"a":' * 65 + "1" + "}" * 65), "nested deeper"),
        (lambda path: path.write_text("9" * 5_000), "4300"),
        (lambda path: path.write_text("{"), "property name"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: None, "No such file"),
    ],
    ids=["pipe", "device", "folder", "huge", "bytes", "nested", "nested_objects", "long_number", "cut", "link", "none"],
)
def test_what_cannot_be_read(make: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    make(path)
    with pytest.raises((OSError, ValueError), match=reason):
        read_json(path)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "d/" * 3_000])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises((OSError, ValueError)):
        read_small(Path(name))
    with pytest.raises(UsageError, match="cannot be opened") as refused, name_errors(name):
        Path(name).stat()
    assert len(str(refused.value)) < 150
    assert "\0" not in str(refused.value)
    assert len(shortened(name)) < 100
    with pytest.raises(UsageError, match="cannot be opened"):
        user_path(name)


def test_paths_begin_at_home_where_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x") == tmp_path / "x"
    assert user_path(Path("y/~")) == Path("y/~")
    with pytest.raises(UsageError, match="home directory"):
        user_path("~no-user-of-this-machine/x")


def test_what_is_honest_is_read(tmp_path: Path) -> None:
    nested = '{"a": ' * 60 + '"]]]] \\" {{{{"' + "}" * 60
    (tmp_path / "x.json").write_text(nested)
    assert read_json(tmp_path / "x.json") == parse_json(nested)
    assert read_small(tmp_path / "x.json", len(nested)) == nested.encode()
    with pytest.raises(ValueError, match="larger"):
        read_small(tmp_path / "x.json", len(nested) - 1)
    shared = "base: &base {ratio: 0.5}\njob: {<<: *base, list: [1, two, null]}"
    assert parse_yaml(shared) == {"base": {"ratio": 0.5}, "job": {"ratio": 0.5, "list": [1, "two", None]}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LINES, "stand for more than"),
        ("a: [" + "[" * 100, "nested deeper"),
        ("x: &x {}\ny: [" + "*x, " * 101 + "1]", "aliases"),
        ("a: &a [*a]", "stand for more than"),
        ("x" * 300_000, "longer than"),
        ("a: [", "parsing"),
        ("a: !!python/object/apply:os.system [id]", "constructor"),
        ("{[a]: 1}", "unhashable"),
        ("*x", "undefined alias"),
        ("a: 2020-99-99", "month"),
        ("a: !!timestamp x", "groupdict"),
        ("a: !!int x", "invalid literal"),
        ("a: 0x" + "f" * 5_000, "integer of 20,000 bits"),
        ("a: 0b" + "1" * 20_000, "integer of 20,000 bits"),
        ("a: {b: [1" + ":59" * 5_000 + "]}", "integer of"),
        ("a: " + "9" * 5_000, "4300"),
    ],
)
def test_yaml_beyond_its_bounds(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_yaml(text)
