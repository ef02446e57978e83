"""Several targets in one command: a model each, from one measurement, the same as each by itself."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from vitcompact.cli.inputs import recorded_selection
from vitcompact.planning import curves
from vitcompact.planning.candidates import measure_losses

from .commands import SMALL, Run


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    done: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        done.append(1)
        return measure_losses(*args, **kwargs)

    monkeypatch.setattr(curves, "measure_losses", counted)
    return done


def test_each_target_has_its_model(run: Run, images: Path, walks: list[int]) -> None:
    given = (*SMALL, "--data-dir", str(images), "--ops", "factorize,neurons")
    done = run("convert", "test_vit", "many", *given, "--target-params", "0.95,0.9", "--json")
    assert done.code == 0, done.err
    assert len(walks) == 1
    found = json.loads(done.out)["budgets"]
    assert [Path(each["out"]) for each in found] == [
        Path("many/params-0.95").resolve(),
        Path("many/params-0.9").resolve(),
    ]
    assert [each["budget"]["target"] for each in found] == [0.95, 0.9]
    alone = run("convert", "test_vit", "one", *given, "--target-params", "0.9")
    assert alone.code == 0
    weights = [Path(name, "model.safetensors").read_bytes() for name in ("one", "many/params-0.9")]
    assert weights[0] == weights[1]
    assert json.loads(Path("many/params-0.9/vitcompact.json").read_text())["options"]["target_params"] == 0.9
    again = run("convert", "test_vit", "many", *given, "--target-params", "0.9,0.85")
    assert again.code == 2
    assert "params-0.9" in again.error
    assert not Path("many/params-0.85").exists()


def test_the_workspace_keeps_the_curves(run: Run, images: Path, walks: list[int]) -> None:
    given = ("--ops", "factorize,neurons")
    assert run("analyze", "test_vit", *SMALL, "--data-dir", str(images), *given, "--target-macs", "0.95").code == 0
    done = run(
        "convert", *given, "--target-macs", "0.95,0.9", "--num-samples", str(json_of("analysis.json")["num_samples"])
    )
    assert done.code == 0, done.err
    assert len(walks) == 1
    assert Path("vitcompact-out/budgets/macs-0.95/model.safetensors").is_file()
    assert "0.95" in done.out
    assert "vitcompact finetune" in done.err


def json_of(name: str) -> Any:
    return json.loads(Path("vitcompact-out", name).read_text())


ONNX = ("--latency-backend", "onnxruntime")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("convert", "X", "OUT", "--target-macs", "0.9,0.9"), "--target-macs: a share is there twice in 0.9,0.9"),
        (("convert", "X", "OUT", "--target-macs", "0.9,1.2"), "--target-macs must be between 0 and 1"),
        (("convert", "X", "OUT", "--target-macs", "0.9,much"), "--target-macs takes numbers such as"),
        (("convert", "X", "OUT", "--target-macs", "0.9,0.8", "--target-params", "0.5"), "give one of"),
        (("convert", "X", "OUT", "--target-macs", "0.9,0.8", "--dry-run"), "--dry-run plans one target"),
        (("analyze", "X", "--target-latency", "0.9,0.8"), "analyze shows the whole curve: give --target-latency one"),
        (("convert", "X", "OUT", "--latency-backend", "openvino"), "give --target-latency with it"),
        (("analyze", "X", "--target-macs", "0.9", "--latency-backend", "torch"), "give --target-latency with it"),
        (("compact", "X", "OUT", "--macs", "0.9", "--latency-backend", "compile"), "give --speedup with it"),
        (("convert", "X", "OUT", "--target-latency", "0.9", "--latency-backend", "tensorrt"), "openvino"),
        (("convert", "X", "OUT", "--target-macs", "0.9", "--latency-batch", "1"), "give --target-latency with it"),
        (
            ("convert", "X", "OUT", "--target-latency", "0.9", "--latency-batch", "0"),
            "--latency-batch must be at least 1",
        ),
        (("analyze", "X", "--target-latency", "0.9", "--latency-dtype", "int8"), "bfloat16"),
        (("compact", "X", "OUT", "--macs", "0.9", "--latency-dtype", "bfloat16"), "give --speedup with it"),
        (
            ("compact", "X", "OUT", "--speedup", "1.2", *ONNX, "--latency-dtype", "bfloat16"),
            "--latency-backend onnxruntime runs float32 here: leave out --latency-dtype",
        ),
    ],
)
def test_refused(words: tuple[str, ...], part: str, run: Run, images: Path) -> None:
    result = run(*words, "--data-dir", str(images))
    assert result.code == 2
    assert part in result.error


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--target-macs", "0.9", "--keep", "cls"), "--keep cls chooses among features, and this model has a head"),
        (("--method", "pair", "--keep", "cls"), "--keep cls chooses among features, and this model has a head"),
        (("--only", "ffn", "--keep", "cls"), "--keep cls chooses among features, and this model has a head"),
        (("--target-macs", "0.9", "--keep", "all"), "'all' is not one of 'cls', 'patches', 'both'"),
    ],
)
def test_what_counts_is_refused_where_nothing_is_chosen(
    words: tuple[str, ...], part: str, run: Run, images: Path
) -> None:
    result = run("convert", "test_vit", "OUT", *SMALL, "--data-dir", images, *words)
    assert result.code == 2
    assert part in result.error
    assert not Path("OUT").exists()


def test_a_plan_is_followed_with_what_counts(run: Run, images: Path) -> None:
    """A plan says nothing of `--keep`; the note says so, and both go together."""
    words = ("test_vit", "OUT", *SMALL, "--num-classes", "0", "--data-dir", images, "--keep", "cls")
    planned = run("convert", *words, "--target-macs", "0.8", "--dry-run")
    assert planned.code == 0
    assert "which says nothing of --keep cls: give both again" in " ".join(planned.err.split())
    converted = run("convert", *words, "--plan", "OUT.plan.json", "--json")
    assert converted.code == 0
    assert json.loads(converted.out)["options"]["keep"] == "cls"


@pytest.mark.parametrize(
    "words",
    [
        ("convert", "X", "OUT", "--target-latency", "0.9"),
        ("analyze", "X", "--target-latency", "0.9"),
        ("compact", "X", "OUT", "--speedup", "1.2"),
    ],
    ids=["convert", "analyze", "compact"],
)
def test_a_runtime_that_is_missing_is_said_before_anything_is_read(
    words: tuple[str, ...], run: Run, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "openvino" else found(name))
    result = run(*words, "--latency-backend", "openvino", "--data-dir", str(images))
    assert result.code == 2
    assert "pip install 'vitcompact[openvino]'" in result.error
    assert not Path("OUT").exists()


@pytest.mark.parametrize(
    ("given", "kept"),
    [((), True), (("target_latency",), True), (("target_macs",), False), (("ratio",), False), (("seed",), True)],
)
def test_the_recorded_runtime_goes_with_a_target_of_latency(given: tuple[str, ...], kept: bool) -> None:
    recorded = {"target_latency": 0.8, "latency_backend": "openvino", "latency_batch": 1, "latency_dtype": None}
    found = recorded_selection(recorded, frozenset(given), None)
    assert [name in found for name in ("latency_backend", "latency_batch", "latency_dtype")] == [kept] * 3
