"""Parameters become flags, older spellings stay, and what was recorded under any of them is read."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from vitcompact.cli.app import VERBS
from vitcompact.cli.console import Console
from vitcompact.cli.spoken import flags, spoken
from vitcompact.cli.verbs.common import follow

from .commands import SMALL, Run


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("`target_macs` must be between 0 and 1", "--target-macs must be between 0 and 1"),
        ("`resume='auto'` continues", "--resume auto continues"),
        ("`target_macs=0.01` is out of reach", "--target-macs 0.01 is out of reach"),
        ("or `overwrite=True` to replace it", "or --overwrite to replace it"),
        ("give `images`, `batch_sizes`", "give --data-dir, --batch-size"),
        ("leave out `protect` and `without='sensitivity'`", "leave out --exclude and --ablate sensitivity"),
        ("`blocks.0` and `qk_dim` are no options", "`blocks.0` and `qk_dim` are no options"),
    ],
)
def test_parameters_become_flags(message: str, said: str) -> None:
    assert spoken(message) == said


def test_every_flag_is_known_by_its_parameter() -> None:
    assert flags()["protect"] == "--exclude"
    assert flags()["rank_ratio"] == "--rank-ratio"
    assert all(flag.startswith("--") for flag in flags().values())


def test_warnings_of_the_library_name_flags(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    with console.capture_messages():
        logging.getLogger("vitcompact").warning("`class_map` says which is which")
    assert "--class-map says which is which" in capsys.readouterr().err


def test_errors_of_the_library_name_flags(run: Run) -> None:
    result = run("convert", "test_vit", "out", *SMALL, "--target-macs", "0.5", "--ratio", "0.5")
    assert result.error == "error: --target-macs decides how much of what: leave out --ratio and --rank-ratio"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("--exclude", "blocks.0"), ("--protect", "blocks.0")),
        (("--ablate", "propagated_error"), ("--without", "propagated_error")),
        (("--merge-tokens", "2"), ("--merge-tokens=2",)),
    ],
)
def test_both_spellings_mean_the_same(run: Run, first: tuple[str, ...], second: tuple[str, ...]) -> None:
    documents = []
    for words in (first, second):
        result = run("convert", "test_vit", "out", *SMALL, *words, "--dry-run", "--json")
        assert result.code == 0, result.err
        documents.append(json.loads(result.out))
    assert documents[0] == documents[1]


@pytest.mark.parametrize("name", ["protect", "exclude"])
def test_a_configuration_may_use_either_name(run: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / "job.yaml").write_text(f"{name}: [blocks.0]\n")
    result = run("analyze", "test_vit", *SMALL, "--config", "job.yaml", "--json")
    assert json.loads(result.out)["options"]["protect"] == ["blocks.0"]


def test_options_recorded_by_earlier_releases_are_read(run: Run, tmp_path: Path, images: Path) -> None:
    recorded = {
        "source": "test_vit", "random_weights": True, "img_size": 32, "num_classes": 2, "data_dir": str(images),
        "target_macs": 0.8, "ops": "neurons,thin-qk", "merge_tokens": "0", "protect": ["blocks.0"], "num_samples": 8,
        "workdir": "vitcompact-out", "seed": 0, "device": "cpu", "dtype": "float32", "reconstruct": 0,
        "without": "drift", "terms": "identity", "init": "lstsq", "hallucinate": "refit", "original": {"model": None},
    }  # fmt: skip
    (tmp_path / "vitcompact.json").write_text(json.dumps({"options": recorded}))
    result = run("convert", "--config", "vitcompact.json", "--dry-run", "--json")
    assert result.code == 0, result.err
    options = json.loads(result.out)["options"]
    assert options["ops"] == "neurons,thin-qk"
    assert options["protect"] == ["blocks.0"]
    assert options["without"] == "drift"


def test_a_workspace_of_an_earlier_release_is_read(run: Run, tmp_path: Path, images: Path) -> None:
    words = ("--target-macs", "0.8", "--ops", "neurons", "--merge-tokens", "1", "--num-samples", "8")
    assert run("analyze", "test_vit", *SMALL, "--data-dir", images, *words).code == 0
    state = next((tmp_path / "vitcompact-out").glob("workspace.json"))
    document = json.loads(state.read_text())
    document["selection"] |= {"ops": "neurons", "merge_tokens": "1"}
    state.write_text(json.dumps(document))
    result = run("convert", "--num-samples", "8", "--dry-run", "--json")
    assert result.code == 0, result.err
    plan = json.loads(result.out)["plan"]
    assert {op["op"] for layer in plan["layers"] for op in layer["operators"]} <= {"neurons"}
    assert plan["merge_tokens"][0] == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"data_dir": Path("imgs")}, "vitcompact eval out --data-dir imgs, vitcompact bench out"),
        (
            {"data_dir": Path("imgs"), "eval_data_dir": Path("a b")},
            "vitcompact eval out --data-dir 'a b', vitcompact bench out",
        ),
        ({"out": Path("my out")}, "vitcompact eval 'my out' --data-dir IMAGES, vitcompact bench 'my out'"),
    ],
)
def test_what_comes_next_judges_on_evaluation_images(given: dict[str, Any], words: str) -> None:
    verb = next(each for each in VERBS if each.name == "compact")
    options = verb.values(**{"source": "ckpt", "out": Path("out"), **given})
    assert follow(options, "eval", "bench", space=None) == words
