"""Names out of files never become commands of a terminal, markup of a page, or lines of a card; messages stay short."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import timm
from safetensors.torch import load_file, save_file

import vitcompact
from vitcompact.checkpoint.card import model_card
from vitcompact.checkpoint.record import Record
from vitcompact.cli.console import Console
from vitcompact.cli.render.common import pairs, table, titled
from vitcompact.errors import MAX_CHARACTERS, MAX_LINES, UsageError
from vitcompact.plans.schema import Plan
from vitcompact.reporting.draw import draw
from vitcompact.utils.files import json_text, write_file

from .commands import Run, write_images

EVIL = "cat\x1b]0;owned\x07\x1b[31m\x9b2J\r\x08\u202e<script>alert(1)</script>|`x`\ud800"
"""A class name: title and colours of a terminal, a cleared screen, text from right to left, markup, no Unicode."""


def assert_harmless(text: str) -> None:
    assert text
    assert all(character.isprintable() or character == "\n" for character in text), ascii(text)


def test_errors_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(verbose=True)
    console.error(EVIL)
    console.note(EVIL)
    console.plain(f"Traceback\n{EVIL}")
    with console.capture_messages():
        logging.getLogger("vitcompact").warning("class %s", EVIL.rstrip("\ud800"))  # which pytest-xdist cannot pass on
        logging.getLogger("vitcompact").warning("class %s", "\n".join(["many"] * 100))
    told = capsys.readouterr().err
    assert_harmless(told)
    assert r"cat\x1b]0;owned\x07" in told
    assert len(told.splitlines()) == 6


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    found = table(EVIL, "number")
    found.add_row(EVIL, "1")
    Console().result({}, titled(EVIL, found), pairs(EVIL, [(EVIL, EVIL)]))
    assert_harmless(capsys.readouterr().out)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    Console(as_json=True).result({EVIL: EVIL})
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "\x9b" not in told
    assert json.loads(told) == {EVIL: EVIL}


def test_errors_of_the_library() -> None:
    error = str(UsageError(f"{EVIL}\n" * 5_000))
    assert_harmless(error)
    assert len(error) <= 1.5 * MAX_CHARACTERS
    assert len(error.splitlines()) <= MAX_LINES
    assert str(UsageError("one\ntwo\nthree")) == "one\ntwo\nthree"
    assert str(UsageError("größer als 3 × 3, 日本")) == "größer als 3 × 3, 日本"


def test_pages_and_cards(tmp_path: Path) -> None:
    cost = {"params": 1, "macs": 1}
    page = draw(
        {"model": EVIL, **cost, "predicted": cost, "layers": [], "ffn": [], "skipped": [{"name": EVIL, "reason": EVIL}]}
    )
    card = model_card(Record("test_vit", Plan(()), results={EVIL: EVIL}), title="out", num_classes=2, license_name=EVIL)
    for text in (page, card):
        assert_harmless(text)
        assert "<script>" not in text.partition("---\n#")[2] if text is card else "<script>" not in text
    write_file(tmp_path / "page.html", page)
    write_file(tmp_path / "names.json", json_text([EVIL]))
    assert json.loads((tmp_path / "names.json").read_text()) == [EVIL]


def test_class_names_of_a_checkpoint(run: Run, tmp_path: Path) -> None:
    """All the way: a directory whose classes are called so is read, scored, converted, saved and read again."""
    source = tmp_path / "source"
    source.mkdir()
    model = timm.create_model("test_vit", num_classes=2, img_size=32, depth=1)
    save_file(model.state_dict(), source / "model.safetensors")
    cfg = {"input_size": [3, 32, 32], "num_classes": 2, "label_names": [EVIL, "dog"], "fixed_input_size": True}
    config = {
        "architecture": "test_vit",
        "num_classes": 2,
        "pretrained_cfg": cfg,
        "model_args": {"img_size": 32, "depth": 1},
    }
    (source / "config.json").write_text(json.dumps(config))
    write_images(tmp_path / "images", 1, 32)
    result = run("eval", source, "--data-dir", "images")
    assert result.code == 2
    assert_harmless(result.error)
    result = run("convert", source, "out", "--ratio", "0.5")
    assert result.code == 0
    assert_harmless(result.err)
    for name in ("README.md", "config.json", "vitcompact.json"):
        assert "\x1b" not in (tmp_path / "out" / name).read_text(encoding="utf-8")
    assert vitcompact.load(tmp_path / "out").pretrained_cfg["label_names"][0] == EVIL  # type: ignore[index]
    assert load_file(tmp_path / "out" / "model.safetensors")
