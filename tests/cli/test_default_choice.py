"""What `analyze` and `convert` do where no share is given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .commands import SMALL, Run

OTHERS = {"thin-qk", "thin-vo", "neurons"}
"""Operators that only a budget has."""


def operators(run: Run, *words: object) -> tuple[set[str], float, str]:
    """Operators that a conversion used, the share of the MACs that is left, and what was said."""
    result = run("convert", "test_vit", "out", *SMALL, *words, "--json", "--overwrite")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    used = {operator["op"] for layer in document["plan"]["layers"] for operator in layer["operators"]}
    return used, document["macs"]["after"] / document["macs"]["before"], result.err


def test_with_images_it_is_a_budget_and_says_so(run: Run, images: Path) -> None:
    used, left, said = operators(run, "--data-dir", images)
    assert left <= 0.8
    assert used & OTHERS
    assert "--target-macs 0.8 (--method pair" in said
    again, same, said = operators(run, "--data-dir", images, "--method", "budget")
    assert (again, same) == (used, left)
    assert "no share was given" not in said


@pytest.mark.parametrize(
    "words",
    [("--method", "pair"), ("--ratio", "0.5"), ("--rank-ratio", "0.5"), ("--only", "ffn"), ("--terms", "mean")],
    ids=lambda words: words[0],
)
def test_whatever_belongs_to_the_pair_takes_the_pair(words: tuple[str, ...], run: Run, images: Path) -> None:
    used, _, said = operators(run, "--data-dir", images, *words)
    assert used <= {"hallucinate", "factorize"}
    assert "no share was given" not in said


def test_without_images_it_is_the_pair(run: Run) -> None:
    assert operators(run)[0] == {"hallucinate", "factorize"}
    refused = run("convert", "test_vit", "other", *SMALL, "--method", "budget")
    assert (refused.code, "needs images" in refused.error) == (2, True)


def test_a_target_and_the_pair_exclude_each_other(run: Run, images: Path) -> None:
    words = ("convert", "test_vit", "out", *SMALL, "--data-dir", images, "--method")
    refused = run(*words, "pair", "--target-params", "0.7")
    assert (refused.code, "leave out --target-params" in refused.error) == (2, True)
    refused = run(*words, "budget", "--ratio", "0.5")
    assert (refused.code, "leave out --ratio" in refused.error) == (2, True)
    refused = run(*words, "both")
    assert refused.code == 2
    assert "Invalid value for '--method': 'both' is not one of 'budget', 'pair' (see" in refused.error


def test_analyze_chooses_for_the_stages_that_follow(run: Run, images: Path) -> None:
    analyzed = run("analyze", "test_vit", *SMALL, "--data-dir", images, "--json")
    assert json.loads(analyzed.out)["budget"]["target"] == 0.8
    converted = run("convert", "--json")
    assert "--target-macs 0.8" in converted.err
    assert json.loads(converted.out)["options"]["target_macs"] == 0.8
    pair = json.loads(run("convert", "--method", "pair", "--json", "--overwrite").out)
    assert {o["op"] for layer in pair["plan"]["layers"] for o in layer["operators"]} == {"hallucinate", "factorize"}
    assert run("analyze", "test_vit", *SMALL, "--data-dir", images, "--method", "pair").code == 0
    assert "--ratio 0.5" in run("convert", "--json", "--overwrite").err
