"""What the documentation says about timm's models is what the recorded runs found."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import family_coverage
import pytest
import torch
from attention_census import registered_models
from family_sweep import fingerprint
from narrow_models import CHOICES, WHOLE, Narrowing, create, kinds

DOCS = Path(__file__).parents[2] / "docs" / "families.md"


def row(model: str, **found: Any) -> dict[str, Any]:
    return {"model": model, "params": 10, "attention": 0, "ffn": 0, "skipped": {}, "softmax": {}, **found}


def test_the_documented_counts_are_the_recorded_ones() -> None:
    counts = family_coverage.recorded(len(registered_models()))
    assert counts in DOCS.read_text(encoding="utf-8"), (
        "run: python benchmarks/family_coverage.py --markdown docs/families.md"
    )


def test_of_those_that_run_a_softmax_over_tokens_nearly_all_hallucinate() -> None:
    softmax, others = family_coverage.wanted(list(family_coverage.read(family_coverage.COVERAGE).values()))
    assert len(softmax) > 350
    assert sum(bool(row["attention"]) for row in softmax) >= 0.97 * len(softmax)
    assert len(others) > 100


def test_what_is_left_over_and_what_fails_is_named() -> None:
    softmax = {"layers.attention.Attention": ["softmax 1x4x9x9"]}
    rows = [
        row("hallucinates", attention=2, softmax=softmax),
        row("does_not", softmax={"vision_transformer.ParallelScalingBlock": ["softmax 1x4x9x9"]}),
        row("compacts", ffn=3),
        row("convolutions"),
        row("too_large", params=10**9, softmax=softmax),
        {"model": "refuses", "error": "ValueError: no"},
    ]
    jobs: dict[str, dict[str, Any]] = {
        "hallucinates": {"model": "hallucinates", "rel_diff": 1e-7},
        "compacts": {"model": "compacts", "error": "RuntimeError: why"},
    }
    text = family_coverage.markdown(rows, jobs, 9)
    for line in (
        "6 of 9 architectures were run, 4 of them of up to 100 M parameters",
        "2 of those run a softmax",
        "heads of 1 are hallucinated (50.0%)",
        "1 of the others have FFNs",
        "1 of the former and 0 of the latter",
        "`compacts` fails there: RuntimeError: why",
        "`vision_transformer.ParallelScalingBlock`: not supported yet",
        "`does_not`",
        "Not run: `refuses` (ValueError: no)",
    ):
        assert line in text, line


def test_later_rows_replace_earlier_ones_and_others_stay(tmp_path: Path) -> None:
    source, kept = tmp_path / "run.jsonl", tmp_path / "kept.jsonl.gz"
    for rows in ([row("a"), row("b")], [row("b", ffn=1), row("b", ffn=2), row("c")]):
        source.write_text("".join(json.dumps(each) + "\n" for each in rows))
        family_coverage.keep(source, kept)
    assert {name: found["ffn"] for name, found in family_coverage.read(kept).items()} == {"a": 0, "b": 2, "c": 0}


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("depth", 12, 2),
        ("depths", (3, 1, 9), (2, 1, 2)),
        ("embed_dims", [64, (32, 16)], [16, (8, 4)]),
        ("embed_dim", None, None),
        ("layers", True, True),
        ("num_heads", 12, 12),
    ],
)
def test_arguments_are_cut_down(name: str, value: Any, wanted: Any) -> None:
    assert Narrowing(depth=2, width=4).argument(name, value) == wanted
    assert WHOLE.argument(name, value) == value


def test_an_architecture_cut_down_has_its_kinds_of_layers() -> None:
    how = dataclasses.replace(CHOICES[0], size=64)
    models = {}
    for name in ("vit_small_patch16_224", "vit_base_patch16_224", "vit_base_patch16_clip_224"):
        with torch.device("meta"):
            models[name] = create(name, how)
    marks = [fingerprint(model, how) for model in models.values()]
    assert len(set(marks)) == 3  # other widths, another norm in front
    small = models["vit_small_patch16_224"]
    assert kinds(small) == {"attention layers.attention.Attention", "ffn layers.mlp.Mlp"}
    assert sum(p.numel() for p in small.parameters()) < 200_000
    with torch.device("meta"):
        assert fingerprint(create("deit_small_patch16_224", how), how) == marks[0]
