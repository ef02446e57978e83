"""Tables keep every figure at 80 columns, and take names with brackets as they are."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from vitcompact.cli.render.analysis import analysis_tables
from vitcompact.cli.render.bench import bench_tables
from vitcompact.cli.render.common import big, change
from vitcompact.cli.render.convert import convert_tables, plan_tables
from vitcompact.cli.render.families import FamiliesTable
from vitcompact.cli.render.results import demo_tables, eval_tables, finetune_table, fold_table
from vitcompact.surgery import Fidelity

HEADS = 16
LAYER = {
    "name": "stages.3.blocks.11.attn",
    "num_heads": HEADS,
    "similarity": 0.87654,
    "similarity_js": None,
    "kept": list(range(0, HEADS, 2)),
    "hallucinated": [{"head": i, "parents": [i - 1], "similarity": 0.5} for i in range(1, HEADS, 2)],
}
ANALYSIS: dict[str, Any] = {
    "model": "vit[large]",
    "params": 304_000_000,
    "macs": 61_600_000_000,
    "layers": [LAYER],
    "ffn": [{"name": "blocks.0.mlp", "hidden": 4096, "embed": 1024, "rank": 512, "energy": 0.91234}],
    "skipped": [{"name": f"blocks.{i}.attn", "reason": "[odd] reason"} for i in range(9)],
    "predicted": {"params": 240_000_000, "macs": 48_800_000_000},
    "num_samples": 512,
}
PLAN = {
    "layers": [
        {
            "name": "blocks.0.attn",
            "operators": [
                {
                    "op": "hallucinate",
                    "num_heads": HEADS,
                    "kept": LAYER["kept"],
                    "hallucinated": [{"head": i, "parents": [i - 1]} for i in range(1, HEADS, 2)],
                }
            ],
        },
        {"name": "blocks.0.mlp", "operators": [{"op": "factorize", "rank": 512, "branches": 1}]},
        {"name": "blocks.1.mlp", "operators": [{"op": "neurons", "hidden": 900}]},
    ],
    "skipped": [],
}
CONVERTED = {
    "params": {"before": 304_000_000, "after": 240_000_000},
    "macs": {"before": 61_600_000_000, "after": 48_800_000_000},
    "plan": PLAN,
}


def drawn(*renderables: RenderableType, width: int = 80) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, highlight=False)
    for renderable in renderables:
        console.print(renderable)
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    return text


@pytest.mark.parametrize("width", [80, 100])
def test_analysis(width: int) -> None:
    text = drawn(*analysis_tables(ANALYSIS), width=width)
    for part in ("vit[large]", "(512 images)", "0.88", "n/a", "15←14", "91.2 %", "512", "-21.1 %", "[odd] reason"):
        assert part in text
    assert "(9 layers)" in text
    assert "stages.3.blocks.11.attn" in text


def test_convert_with_and_without_fidelity() -> None:
    found = Fidelity(0.94, 0.987, 64).to_json()
    text = drawn(*convert_tables({**CONVERTED, "fidelity": found}))
    assert "0.940 (95 % interval 0.850 to 0.975)" in text  # 60 of 64
    few = Fidelity(1.0, 1.0, 16).to_json()
    assert "1.000 (95 % interval 0.806 to 1.000)" in drawn(*convert_tables({**CONVERTED, "fidelity": few}))
    assert "0.987" in text
    features = drawn(*convert_tables({**CONVERTED, "fidelity": {"agreement": None, "cosine": 0.9}}))
    assert "top-1" not in features
    assert "held-out" not in drawn(*convert_tables({**CONVERTED, "fidelity": None}))


def test_plan_names_every_operator() -> None:
    text = drawn(*plan_tables(CONVERTED))
    for part in ("8 of 16 heads", "1←0", "rank 512", "neurons", "hidden 900"):
        assert part in text


def test_what_a_budget_asked_for_and_what_it_left() -> None:
    timed = {"unit": "latency", "target": 0.8, "left": 0.7934, "interval": [0.78, 0.81]}
    for tables in (convert_tables, plan_tables):
        text = drawn(*tables({**CONVERTED, "budget": timed}))
        assert "80 % asked for, 79.3 % left (95 % interval 78.0 % to 81.0 %)" in text
        text = drawn(*tables({**CONVERTED, "budget": {**timed, "unit": "macs", "interval": None}}))
        assert "79.3 % left" in text
        assert "interval" not in text


def test_finetune_fold_and_eval() -> None:
    tuned = {"steps": 10, "epochs": 0.5, "top1": {"before": None, "after": 91.234}, "agreement": 0.9, "seconds": 61.0}
    text = drawn(finetune_table(tuned))
    assert "91.23 %" in text
    assert "top-1 before" not in text  # an earlier process measured it
    assert "1 min 1 s" in text
    bare = {"steps": 10, "epochs": 0.5, "top1": {"before": None, "after": None}, "agreement": None}
    text = drawn(finetune_table(bare))
    assert "top-1" not in text
    assert "--eval-data-dir" in text
    text = drawn(finetune_table({**bare, "cosine": 0.9876}))
    assert "0.988" in text
    assert "--eval-data-dir" not in text
    parity = {"max_abs_diff": 1.5e-6, "rel_diff": 2e-7, "cast_max_abs_diff": 0.0, "agreement": 1.0}
    folded = {**parity, "params": 1000, "macs": 2000}
    assert "1.5e-06" in drawn(fold_table(folded))
    exact = drawn(fold_table({**folded, "max_abs_diff": 0.0}))
    assert "also on perturbed weights" in exact  # why the relative one is not 0
    merging = {"merge_tokens": [4, 4], "agreement": None, "cosine": 0.987, "num_samples": 8}
    text = drawn(fold_table({**folded, "agreement": None, "merging": merging}))  # a model without a head
    assert "0.987" in text
    assert "top-1" not in text
    scores = {"top1": 93.38, "top5": 99.0, "num_samples": 5000, "agreement": None, "cosine": 0.99, "skipped": 2}
    text = drawn(*eval_tables({**scores, "model": "m[1]", "images": "val.tar"}))
    assert "2 unreadable" in text
    assert "m[1] on val.tar" in text
    features = {"cosine": 0.9, "patch_cosine": None, "neighbour_agreement": 0.5, "num_samples": 5}
    assert "top-1" not in drawn(*eval_tables({**features, "model": "m", "images": "val"}))


def test_bench_puts_the_macs_beside_the_speed() -> None:
    side = {"latency_ms": {"p50": 1234.5, "p95": 2345.6}, "samples_per_sec": 12345.6, "peak_memory_bytes": None}
    row = {**side, "batch_size": 256, "baseline": side, "speedup": 1.2345, "speedup_interval": [1.2, 1.3]}
    document = {**row, "batches": [row], "macs_ratio": 0.8, "backend": "cpu", "input_size": [3, 224, 224], "model": "m"}
    text = drawn(*bench_tables(document))
    for part in ("1.234", "1.200 to 1.300", "0.800", "1.250", "12345.6"):
        assert part in text
    drawn(*bench_tables({**document, "macs_ratio": None}))


def test_families_keep_class_names_whole_where_there_is_room() -> None:
    name = "swin_transformer_v2_cr.WindowMultiHeadAttention"
    rows = [
        {"attention": name, "models": 16, "supported": False, "reason": "a reason of many words " * 5},
        {"attention": "new.Attention", "models": None, "supported": True, "reason": ""},
    ]
    assert name in drawn(FamiliesTable({"families": rows}), width=100)
    assert "1 of 2 supported" in drawn(FamiliesTable({"families": rows}), width=80)
    drawn(FamiliesTable({"families": []}))


def test_the_demo_puts_the_budget_beside_the_pair() -> None:
    stages = [
        {"stage": name, "top1": top1, "params": 1000, "macs": macs, "latency_ms": 70.5, "seconds": 1.0}
        for name, top1, macs in (
            ("original", 99.0, 2000),
            ("naive", 82.0, 1600),
            ("the pair", 91.25, 1600),
            ("the pair, finetuned", 97.5, 1600),
            ("a budget", 98.5, 1598),
            ("folded", 98.5, 1598),
        )
    ]
    speeds = {"speedup": 1.3, "speedup_interval": (1.2, 1.4), "pair_speedup": 1.1, "pair_speedup_interval": (1.0, 1.2)}
    text = drawn(*demo_tables({"stages": stages, **speeds, "out": "x"}))
    rows = [line.split() for line in text.splitlines()]
    assert ["top-1,", "nothing", "trained", "99.00", "%", "91.25", "%", "98.50", "%"] in rows
    assert ["top-1,", "finetuned", "97.50", "%"] in rows
    assert ["times", "as", "fast", "1.00", "1.10", "1.30"] in rows
    assert [row[-3] for row in rows if row[-1:] == ["s"]] == ["1.00", "k", "k", "1.10", "k", "1.30"]
    assert "70.5" not in text  # medians of other runs, which contradict the speed-ups on a busy machine


def test_demo() -> None:
    stage = {"stage": "original", "seconds": 1.0, "top1": 99.0, "params": 308_000, "macs": 22_600_000}
    last = {**stage, "stage": "fold", "top1": 98.5, "params": 246_400, "latency_ms": 3.5}
    text = drawn(*demo_tables({"stages": [stage, last], "speedup": 1.21, "speedup_interval": (1.15, 1.28), "out": "x"}))
    assert "-20.0 %" in text
    assert "-0.50 points" in text
    assert "1.21 times as fast (95 % interval 1.15 to 1.28," in text


def test_counts() -> None:
    assert [big(v) for v in (12, 1234, 22_050_000, 4.6e9, 1.2e12)] == ["12", "1.23 k", "22.1 M", "4.60 G", "1.20 T"]
    assert big(990e6, like=1.25e9) == "0.99 G"
    assert change(0, 1) == "n/a"
