"""`compact` from the command line: one command to a folded model, a table, a report and what comes next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelCard

import vitcompact
from vitcompact import UsageError
from vitcompact.cli.verbs import compact as verb
from vitcompact.data import CalibrationImages, is_apart
from vitcompact.options.compaction import CompactionOptions
from vitcompact.options.recipes import NAMES as RECIPES
from vitcompact.options.recipes import recipe

from .commands import SMALL, Run


def test_one_command_to_a_folded_model(run: Run, images: Path, tmp_path: Path) -> None:
    done = run("compact", "test_vit", *SMALL, "--data-dir", images, "--macs", 0.75, "--minutes", 0.05, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert {"before", "after", "reached", "steps", "plan", "report", "out"} <= document.keys()
    for side in ("before", "after"):
        assert {"top1", "agreement", "latency_ms", "macs", "params", "bytes"} <= document[side].keys()
    assert document["after"]["macs"] <= 0.75 * document["before"]["macs"]
    assert document["after"]["bytes"] < document["before"]["bytes"]
    out, space = Path(document["out"]), tmp_path / "vitcompact-out"
    assert out == space / "folded"
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
    assert vitcompact.results(model).plan.form == "folded"
    page = Path(document["report"]).read_text()
    assert all(
        part in page for part in ("Before and after", "95 % interval", "Steps", "Loss against budget", "Who saves what")
    )
    card = ModelCard.load(out / "README.md")
    assert f"| top-1 | {document['before']['top1']:.2f} % | {document['after']['top1']:.2f} % |" in card.text
    (score,) = card.data.eval_results or [None]
    assert score is not None
    assert (score.metric_value, score.dataset_name) == (document["after"]["top1"], "images")
    command = ("vitcompact compact test_vit ", "--data-dir images", "--macs 0.75")
    assert all(part in card.text for part in command)
    assert "## Limits" in card.text
    record = json.loads((out / "vitcompact.json").read_text())["results"]
    assert record["reached"] == document["reached"]
    assert record["top1"] == {side: document[side]["top1"] for side in ("before", "after")}
    assert "next: vitcompact eval, vitcompact bench" in done.err
    judged = json.loads(run("eval", "--json").out)  # the chain goes on from here
    assert (judged["num_samples"], document["num_samples"]) == (8, 4)  # the other half chose


def test_the_table_says_what_it_cost(run: Run, images: Path, tmp_path: Path) -> None:
    words = ("compact", "test_vit", "out", *SMALL, "--data-dir", images / "train", "--minutes", 0.05)
    done = run(*words, "--params", 0.8, "--protect", "blocks.0", "--export", "pt2")
    assert done.code == 0, done.err
    assert (tmp_path / "out.pt2").is_file()
    assert "exported to" in done.err
    for part in ("Before and after", "times as fast", "MACs per image", "file size", "closed form", "same top-1 class"):
        assert part in done.out
    assert "no evaluation images" in done.err
    assert not (tmp_path / "vitcompact-out").exists()  # both ends were named
    assert "next: vitcompact bench out" in done.err  # and no eval of images that it has seen
    plan = json.loads((tmp_path / "out" / "vitcompact.json").read_text())["plan"]
    assert not any(layer["name"].startswith("blocks.0.") for layer in plan["layers"])


def test_what_judges_is_not_trained_on(run: Run, images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without evaluation images some calibration images judge, and the training loader leaves those out."""
    given: dict[str, Any] = {}

    def note(model: object, calibration: CalibrationImages, **rest: Any) -> None:
        given.update(rest, calibration=calibration)
        raise UsageError("seen enough")

    monkeypatch.setattr(verb, "compact", note)
    words = ("compact", "test_vit", *SMALL, "--data-dir", images / "train")
    assert "seen enough" in run(*words, "--num-samples", 9, "--preset", "small").error
    calibration, training = given["calibration"], given["training"]
    assert calibration.num_samples == 12  # a quarter more than the nine to work with
    apart = {place for number, place in enumerate(calibration.places) if is_apart(number)}
    assert len(apart) == 3
    assert training.num_samples == 16 - 3
    assert not apart & set(training._indices)
    assert given["minutes"] is None  # of the recipe
    assert "seen enough" in run(*words[:-1], images).error  # with a split to evaluate on, all images train
    assert given["training"].num_samples == 16
    assert given["evaluation"] is not None


@pytest.mark.parametrize("how", ["preset", "config"])
@pytest.mark.parametrize("name", RECIPES)
def test_recipes_by_name(how: str, name: str, run: Run, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[CompactionOptions] = []

    def note(_: object, __: object, **rest: Any) -> None:
        names = ("speedup", "macs", "params", "preset", "max_drop", "minutes")
        asked.append(CompactionOptions(**{key: rest[key] for key in names}))
        raise UsageError("seen enough")

    monkeypatch.setattr(verb, "compact", note)
    words = ("compact", "test_vit", *SMALL, "--data-dir", images)
    assert "seen enough" in run(*words, f"--{how}", name).error
    assert "seen enough" in run(*words, f"--{how}", name, "--minutes", 2).error
    first, second = asked
    assert first.size == ("macs", recipe(name)["macs"])
    assert (first.time, second.time) == (recipe(name)["minutes"], 2.0)


def test_a_recipe_of_ones_own(run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def note(_: object, __: object, **rest: Any) -> None:
        asked.update(rest)
        raise UsageError("seen enough")

    monkeypatch.setattr(verb, "compact", note)
    (tmp_path / "mine.yaml").write_text(f"data_dir: {images}\nmacs: 0.8\nmax-drop: 100\nprotect: [blocks.0]\n")
    assert "seen enough" in run("compact", "test_vit", *SMALL, "--config", "mine.yaml", "--minutes", 3).error
    assert (asked["macs"], asked["max_drop"], asked["minutes"], asked["protect"]) == (0.8, 100.0, 3.0, ("blocks.0",))
    (tmp_path / "small").write_text("macs: 0.3\nspedup: 2\n")  # a file of that name comes first
    refused = run("compact", "test_vit", "--config", "small").error
    assert "unknown option 'spedup' of compact; did you mean speedup" in refused


def test_bad_requests_end_before_the_work(run: Run, images: Path, tmp_path: Path) -> None:
    words = ("compact", "test_vit", *SMALL)
    (tmp_path / "taken.pt2").write_text("x")
    taken = run("compact", "test_vit", "taken", *SMALL, "--data-dir", images, "--export", "pt2")
    assert "taken.pt2 exists" in taken.error
    assert "needs --data-dir" in run(*words).error
    for options, message in (
        (("--speedup", 1.5, "--macs", 0.7), "give one of --speedup and --macs, not both"),
        (("--preset", "tiny"), "'tiny' is not one of 'gentle', 'balanced', 'small'"),
        (("--protect", "bloks.0"), "matches no layer of this model; near are blocks.0"),
        (("--speedup", 0.5), "--speedup must be above 1"),
    ):
        refused = run(*words, "--data-dir", images, *options)
        assert (refused.code, message in refused.error) == (2, True), refused.err
