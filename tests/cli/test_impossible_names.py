"""Names that no file can have, wherever a verb takes one: one message, exit code 2, and nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from vitcompact.cli.app import main
from vitcompact.cli.options import VERBS
from vitcompact.cli.spoken import flags_of

from .commands import SMALL, Run

PLACES = {"PATH", "FILE", "DIR", "SOURCE", "PATH|auto"}
"""What options that take a name on this machine are called in `--help`."""
NAMES = {"too long": "a" * 300 + ".html", "of nobody": "~no-user-of-this-machine/x.html"}
WORDS = {
    "compact": ("test_vit", "out", *SMALL, "--data-dir", "IMAGES", "--macs", "0.8"),
    "analyze": ("test_vit", *SMALL, "--data-dir", "IMAGES"),
    "convert": ("test_vit", "out", *SMALL, "--data-dir", "IMAGES", "--ratio", "0.5"),
    "finetune": ("made", "out", "--data-dir", "IMAGES", "--teacher", "made"),
    "fold": ("made", "out", "--data-dir", "IMAGES", "--merge-tokens", "1"),
    "export": ("made", "out.pt2"),
    "eval": ("test_vit", *SMALL, "--data-dir", "IMAGES", "--probe", "knn"),
    "bench": ("test_vit", *SMALL, "-b", "1"),
    "compare": ("made", "test_vit"),
    "push": ("ORG/NAME", "made", "--dry-run"),
    "families": (),
    "demo": (),
}
"""What each verb is given beside the name, so that it would come to it."""
ALWAYS = {"analyze", "finetune", "eval"}


def _places() -> Iterator[object]:
    for verb in VERBS:
        marks = () if verb.name in ALWAYS else (pytest.mark.broad,)
        for name, option in verb.options.items():
            if option.unit in PLACES and not (name == "workdir" and "out" in WORDS[verb.name]):
                flag = flags_of(name, option)[0]
                yield pytest.param(verb.name, flag, id=f"{verb.name}{flag}", marks=marks)
        for place, (name, (called, _)) in enumerate(verb.arguments.items()):
            if called != "REPO":
                yield pytest.param(verb.name, place, id=f"{verb.name} {name}", marks=marks)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model that no data went into."""
    out = tmp_path_factory.mktemp("impossible") / "made"
    assert main(["convert", "test_vit", str(out), *SMALL, "--ratio", "0.5", "-q"]) == 0
    return out


@pytest.mark.parametrize(("verb", "place"), list(_places()))
def test_names_that_no_file_can_have(
    run: Run, tmp_path: Path, images: Path, made: Path, verb: str, place: str | int
) -> None:
    shutil.copytree(made, tmp_path / "made")
    words = [str(images) if word == "IMAGES" else word for word in WORDS[verb]]
    for kind, name in NAMES.items():
        named = [*words, place, name] if isinstance(place, str) else [*words[:place], name, *words[place + 1 :]]
        result = run(verb, *named)
        assert result.code == 2, f"{kind}: {result.err}"
        assert "bug" not in result.error, kind
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
