"""The four verbs chain through the workspace, and what they print is what the contract says."""

from __future__ import annotations

import json
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import vitcompact
from vitcompact.cli.progress import PlainProgress

from .commands import PAIR, SMALL, VIT, Run


def test_four_commands_leave_a_checkpoint_that_timm_loads(job: Path) -> None:
    names = {path.name for path in job.iterdir()}
    assert {"analysis.json", "plan.json", "workspace.json", "converted", "finetuned", "folded"} <= names
    model = timm.create_model(f"local-dir:{job / 'folded'}", pretrained=True).eval()
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


def test_analyze_prints_the_keys_of_the_contract(run: Run, images: Path) -> None:
    result = run("analyze", "test_vit", *SMALL, *PAIR, "--data-dir", images, "--num-samples", 8, "--json")
    document = json.loads(result.out)
    assert result.code == 0
    assert {"model", "params", "macs", "layers", "ffn", "skipped", "predicted"} <= document.keys()
    layer = document["layers"][0]
    assert {"name", "num_heads", "similarity", "kept", "hallucinated"} <= layer.keys()
    assert {"head", "parents", "similarity"} <= layer["hallucinated"][0].keys()
    assert {"name", "rank", "energy"} <= document["ffn"][0].keys()
    assert document["predicted"]["macs"] < document["macs"]
    assert document["num_samples"] == 8


def test_convert_prints_the_keys_of_the_contract(run: Run, images: Path, tmp_path: Path) -> None:
    result = run("convert", "test_vit", "out", *SMALL, "--data-dir", images, "--json")
    document = json.loads(result.out)
    assert result.code == 0
    assert document["params"]["after"] < document["params"]["before"]
    assert document["macs"]["after"] < document["macs"]["before"]
    assert set(document["fidelity"]) >= {"agreement", "cosine"}
    assert document["plan"]["layers"]
    assert Path(document["out"]) == tmp_path / "out"
    assert "16 images" in result.err


def test_dry_run_writes_the_plan_that_convert_then_follows(run: Run, tmp_path: Path, images: Path) -> None:
    words = ("convert", "test_vit", *SMALL, *PAIR, "--data-dir", images)
    dry = run(*words, "--dry-run", "--json")
    assert dry.code == 0
    document = json.loads(dry.out)
    assert [path.name for path in (tmp_path / "vitcompact-out").iterdir()] == ["plan.json"]
    assert json.loads((tmp_path / "vitcompact-out" / "plan.json").read_text()) == document["plan"]
    again = ("convert", "test_vit", *SMALL, "--data-dir", images, "--plan", "vitcompact-out/plan.json", "--json")
    replayed = json.loads(run(*again).out)
    assert replayed["plan"]["layers"] == document["plan"]["layers"]
    assert replayed["macs"] == document["macs"]


def test_dry_run_with_an_output_leaves_that_name_free(run: Run, tmp_path: Path) -> None:
    result = run("convert", "test_vit", "out", *SMALL, "--dry-run")
    assert result.code == 0
    assert "hallucinate" in result.out
    assert [path.name for path in tmp_path.iterdir()] == ["out.plan.json"]
    assert run("convert", "test_vit", "out", *SMALL, "--plan", "out.plan.json").code == 0


def test_both_ends_given_leave_the_workspace_alone(run: Run, images: Path, tmp_path: Path) -> None:
    assert run("convert", "test_vit", "out", *SMALL, *PAIR, "--data-dir", images).code == 0
    assert not (tmp_path / "vitcompact-out").exists()
    (tmp_path / "vitcompact-out").mkdir()
    (tmp_path / "vitcompact-out" / "workspace.json").write_text("nonsense")
    assert run("fold", "out", "folded").code == 0


def test_what_is_said_to_come_next_works_as_it_stands(run: Run, images: Path) -> None:
    """Also where model and output were named, so that no workspace knows them, and in a folder with a space."""

    def following(err: str) -> list[str]:
        hint = next(line for line in err.splitlines() if "; next: " in line).partition("; next: ")[2]
        return shlex.split(hint.split(", ")[0])[1:]

    next_ = following(run("convert", "test_vit", "my out", *SMALL, "--data-dir", images, "--ratio", 0.5).err)
    assert next_ == ["finetune", "my out", "--data-dir", str(images)]
    next_ = following(run(*next_, "my tuned", "--steps", 1, "-b", 8).err)
    assert next_ == ["fold", "my tuned"]
    done = run(*next_, "--workdir", "my work")
    next_ = following(done.err)
    assert next_ == ["eval", "--workdir", "my work"]
    assert "vitcompact bench --workdir 'my work'" in done.err
    assert run(*next_, "--data-dir", images / "val").code == 0


def test_finetune_prints_the_keys_of_the_contract(run: Run, job: Path, images: Path) -> None:
    result = run("finetune", "--steps", 2, "-b", 8, "--overwrite", "--json")
    document = json.loads(result.out)
    assert {"steps", "epochs", "top1", "agreement", "out"} <= document.keys()
    assert document["steps"] == 2
    assert document["top1"]["before"] is not None
    assert f"--data-dir {images}" in result.err


def test_finetune_without_evaluation_images_measures_nothing(run: Run, job: Path, images: Path) -> None:
    words = ("finetune", job / "converted", "out", "--teacher", _teacher(job), "--data-dir", images / "train")
    document = json.loads(run(*words, "--steps", 1, "-b", 8, "--json").out)
    assert document["top1"] == {"before": None, "after": None}


def test_finetune_finds_its_teacher_in_the_record(run: Run, images: Path) -> None:
    assert run("convert", "test_vit", "out", *SMALL, *PAIR, "--data-dir", images).code == 0
    result = run("finetune", "out", "tuned", "--data-dir", images, "--steps", 1, "-b", 8, "--scale", "0.5,1")
    assert result.code == 0
    assert "--teacher test_vit" in result.err


def test_resume_continues_after_an_interruption(run: Run, job: Path) -> None:
    words = ("finetune", "--steps", 2, "-b", 8, "--overwrite")
    assert run(*words, "--resume", "auto").code == 0  # the job's own state: finished, so nothing is left to do
    result = run(*words, "--lr", 0.1, "--resume", "auto")
    assert result.code == 2
    assert "--lr was" in result.error


def test_ctrl_c_leaves_a_state_to_go_on_from(run: Run, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("convert", "test_vit", *SMALL, *PAIR, "--data-dir", images, "--workdir", "my job").code == 0
    words = ("finetune", "--steps", 4, "-b", 8, "--scale", "0.5,1", "--no-amp", "--workdir", "my job")
    plain = PlainProgress.advance

    def advance(self: PlainProgress, *args: Any, **kwargs: Any) -> None:
        _interrupt(self)
        plain(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PlainProgress, "advance", advance)
        result = run(*words)
    assert result.code == 130
    hint = result.error.rpartition(": ")[2]
    assert hint == "vitcompact finetune --resume auto --workdir 'my job'"
    resumed = run(*shlex.split(hint)[1:], "--json")  # what is said is what works
    assert resumed.code == 0
    assert json.loads(resumed.out)["steps"] == 4
    assert "from the run that is continued:" in resumed.err
    assert "--steps 4" in resumed.err
    other = run(*shlex.split(hint)[1:], "--lr", "0.1", "--overwrite")
    assert (other.code, "--lr was" in other.error) == (2, True)
    with monkeypatch.context() as patch:
        patch.setattr(PlainProgress, "advance", advance)
        for _ in range(3):  # each sets the one before aside, with what the command line keeps beside it
            assert run(*words, "--overwrite").code == 130
    anew = run("finetune", "--steps", 1, "-b", 8, "--workdir", "my job", "--overwrite")  # --resume was forgotten
    assert anew.code == 0
    kept = Path("my job", "finetune-state", "earlier")
    assert f"it is kept, and --resume {kept} continues it" in anew.err
    late = run("finetune", "--resume", kept, "--workdir", "my job", "--json")
    assert (late.code, json.loads(late.out)["steps"]) == (0, 4)


def _interrupt(progress: PlainProgress) -> None:
    task = progress._tasks[-1]
    if task.name == "finetune" and task.done == 1:
        signal.raise_signal(signal.SIGINT)


def test_images_used_twice_are_warned_of(run: Run, job: Path, images: Path) -> None:
    result = run("eval", job / "folded", "--data-dir", images / "train", "--json")
    assert result.code == 0
    assert "at least 16 of the images" in result.err
    assert "at least" not in run("eval").err


def test_fold_prints_the_keys_of_the_contract(run: Run, job: Path) -> None:
    document = json.loads(run("fold", "--overwrite", "--dtype", "bfloat16", "--json").out)
    assert {"max_abs_diff", "rel_diff", "cast_max_abs_diff", "agreement", "params", "macs", "out"} <= document.keys()
    assert document["rel_diff"] <= 2e-4
    assert document["cast_max_abs_diff"] > 0


def test_fold_merges_tokens_and_says_what_that_does(run: Run, job: Path, images: Path) -> None:
    plain = json.loads(run("fold", "--overwrite", "--json").out)
    assert "merging" not in plain
    result = run("fold", "--overwrite", "--merge-tokens", 1, "--json")
    document = json.loads(result.out)
    assert document["merging"]["num_samples"] == 8  # the evaluation images of the workspace
    assert 0 < document["merging"]["cosine"] < 1
    assert document["macs"] < plain["macs"]
    assert document["rel_diff"] <= 2e-4  # merging is no part of the proof
    model = timm.create_model(f"local-dir:{job / 'folded'}", pretrained=True).eval()
    assert model.vitcompact_plan.merge_tokens == tuple(document["merging"]["merge_tokens"])
    assert "similar tokens are merged" in (job / "folded" / "README.md").read_text()
    assert "pairs of tokens merged" in run("fold", "--overwrite", "--merge-tokens", "1,0").out
    without = run("fold", "--overwrite", "--merge-tokens", 0, "--json")
    assert json.loads(without.out)["macs"] == plain["macs"]


def test_fold_merges_tokens_of_a_model_that_was_never_converted(run: Run, images: Path, tmp_path: Path) -> None:
    vitcompact.save(timm.create_model("test_vit", num_classes=2, img_size=32, depth=2), tmp_path / "plain")
    assert "run convert first" in run("fold", "plain", "out").error
    result = run("fold", "plain", "out", "--merge-tokens", 1)
    assert result.code == 0
    assert "measured on noise" in result.err
    result = run("fold", "plain", "judged", "--merge-tokens", 1, "--eval-data-dir", images / "val", "--json")
    assert json.loads(result.out)["merging"]["num_samples"] == 8
    assert "noise" not in result.err


def test_fold_without_finetune_folds_what_was_converted_and_says_so(run: Run, images: Path) -> None:
    assert run("convert", "test_vit", *SMALL, *PAIR, "--data-dir", images).code == 0
    result = run("fold")
    assert result.code == 0
    assert "not finetuned" in result.err
    assert "converted" in result.err


def test_eval_takes_model_images_and_reference_from_the_workspace(run: Run, job: Path, images: Path) -> None:
    result = run("eval", "--json")
    document = json.loads(result.out)
    assert {"top1", "top5", "num_samples", "agreement", "cosine"} <= document.keys()
    assert document["num_samples"] == 8
    assert document["cosine"] is not None
    assert "folded" in result.err
    assert "--reference" in result.err


def test_eval_of_a_path_compares_with_the_recorded_original(run: Run, job: Path, images: Path) -> None:
    """Before, after, difference and its interval, without being asked; where the original is gone, that is said."""
    words = ("eval", job / "folded", "--data-dir", images / "val")
    document = json.loads(run(*words, "--json").out)
    before, after, change = document["reference"]["top1"], document["top1"], document["change"]
    assert change["top1"] == after - before
    assert change["top1_interval"][0] <= change["top1"] <= change["top1_interval"][1]
    shown = run(*words)
    assert all(part in shown.out for part in ("reference", "difference", "95 % interval", "points"))
    record = job / "folded" / "vitcompact.json"
    content = json.loads(record.read_text())
    content["provenance"]["source"] = "gone.safetensors"
    record.write_text(json.dumps(content))
    alone = run(*words, "--json")
    assert alone.code == 0
    assert json.loads(alone.out)["agreement"] is None
    assert "warning: not compared with the original" in alone.err


def test_eval_of_a_model_without_head_compares_features(run: Run, images: Path) -> None:
    source = ("test_vit", "--random-weights", "--img-size", 32, "--num-classes", 0)
    assert run("convert", *source, "out", *PAIR, "--data-dir", images).code == 0
    found = run("eval", "out", "--data-dir", images / "val", "--json")
    assert json.loads(found.out)["cosine"] > 0
    alone = run("eval", *source, "--data-dir", images / "val", "--json")
    assert alone.code == 2
    assert "--reference" in alone.error


def test_bench_compares_with_the_recorded_original(run: Run, job: Path) -> None:
    words = ("bench", "-b", 1, 2, "--num-pairs", 2, "--warmup", 0)
    document = json.loads(run(*words, "--json").out)
    keys = {"samples_per_sec", "latency_ms", "baseline", "speedup", "macs_ratio", "backend"}
    assert keys <= document.keys()
    assert document["macs_ratio"] < 1
    assert [row["batch_size"] for row in document["batches"]] == [1, 2]
    missed = run(*words, job / "folded", "--min-speedup", 1000, "--json")
    assert missed.code == 6
    assert json.loads(missed.out)["batches"]
    assert "1000" in missed.err


def test_weights_only_is_done_and_said_loudly(run: Run) -> None:
    for verb in ("analyze", "convert"):
        result = run(verb, "test_vit", *SMALL, "--workdir", verb)
        assert result.code == 0
        assert "weights alone" in result.err + result.out
    assert "warning: " in result.err


def test_nothing_but_ffns_is_done_with_a_note(run: Run) -> None:
    result = run("analyze", "test_vit", *SMALL, "--only", "ffn")
    assert result.code == 0
    assert "only the FFNs" in result.err


def test_nothing_to_compact_is_exit_3(run: Run) -> None:
    result = run("analyze", "resnet18", "--random-weights", "--img-size", 32)
    assert result.code == 3
    assert "ResNet" in result.error


def test_convert_takes_the_selection_of_the_analysis(run: Run) -> None:
    assert run("analyze", "test_vit", *SMALL, "--protect", "blocks.0", "--rank-ratio", 0.25).code == 0
    result = run("convert", "--json")
    layers = {layer["name"]: layer["operators"][0] for layer in json.loads(result.out)["plan"]["layers"]}
    assert "blocks.0.attn" not in layers
    assert layers["blocks.1.mlp"]["rank"] == 16
    assert "--rank-ratio 0.25 --exclude blocks.0" in result.err
    wider = run("convert", "--rank-ratio", 0.5, "--overwrite", "--json")
    layers = {layer["name"]: layer["operators"][0] for layer in json.loads(wider.out)["plan"]["layers"]}
    assert layers["blocks.1.mlp"]["rank"] == 32


def test_quiet_prints_results_and_nothing_else(run: Run, job: Path) -> None:
    result = run("fold", "--overwrite", "--quiet")
    assert "parameters" in result.out
    assert result.err == ""


def test_families_lists_what_is_supported_and_why_not(run: Run) -> None:
    rows = json.loads(run("families", "--json").out)["families"]
    assert all({"attention", "models", "supported", "reason"} <= row.keys() for row in rows)
    supported = [row["attention"] for row in rows if row["supported"]]
    assert "layers.attention.Attention" in supported
    assert all(row["reason"] for row in rows)


def test_families_of_a_model_say_what_of_it_is_compacted(run: Run, weights: Path) -> None:
    document = json.loads(run("families", "pvt_v2_b0", "--json").out)
    assert [row["attention"] for row in document["families"]] == ["pvt_v2.Attention"]
    assert {"attention", "models", "supported", "reason"} <= document["families"][0].keys()
    told = {layer["name"]: layer["reason"] for layer in document["layers"]}
    assert "one head" in told["stages.0.blocks.0.attn"]
    assert told["stages.1.blocks.0.attn"] == ""
    assert not document["merging"]["supported"]
    shown = run("families", weights, *VIT)
    assert "4 of 4 layers are compacted" in shown.out
    assert "tokens can be merged" in shown.out
    assert run("families", "resnet18").code == 3


def _teacher(job: Path) -> str:
    state = json.loads((job / "workspace.json").read_text())
    return str(state["source"]["source"])


@pytest.mark.parametrize("name", ["html", "png"])
def test_report_is_drawn(run: Run, images: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "folder" / f"report.{name}"
    assert run("analyze", "test_vit", *SMALL, *PAIR, "--data-dir", images, "--report", path).code == 0
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG" if name == "png" else b"<!DOCTYPE html>")


def test_a_budget_from_analysis_to_a_folded_model(run: Run, images: Path, tmp_path: Path) -> None:
    arguments = (*SMALL, "--data-dir", images, "--target-macs", "0.8", "--json")
    analysis = json.loads(run("analyze", "test_vit", *arguments).out)
    budget = analysis["budget"]
    assert (budget["unit"], budget["target"]) == ("macs", 0.8)
    assert {"left", "harm"} <= budget["curve"][0].keys()
    assert {"name", "operators", "saving", "harm", "curve"} <= budget["layers"][0].keys()
    assert sum(entry["harm"] for entry in budget["operators"]) == pytest.approx(budget["harm"])
    planned = json.loads(run("convert", "--dry-run", "--json").out)
    assert planned["macs"]["after"] <= 0.8 * planned["macs"]["before"]
    assert planned["macs"]["after"] == analysis["predicted"]["macs"]
    made = json.loads(run("convert", "--reconstruct", "2", "--json").out)
    assert made["macs"] == planned["macs"]
    assert made["plan"]["layers"] == planned["plan"]["layers"]
    left = made["macs"]["after"] / made["macs"]["before"]
    timed = dict.fromkeys(("interval", "backend", "batch_size", "dtype"))
    assert made["budget"] == {"unit": "macs", "target": 0.8, "left": left, **timed}
    recorded = tmp_path / "vitcompact-out" / "converted"
    assert json.loads((recorded / "vitcompact.json").read_text())["results"]["budget"] == made["budget"]
    card = (recorded / "README.md").read_text()
    assert "| budget.target | 0.8 |" in card
    assert "It is in training form" in card
    folded = json.loads(run("fold", "vitcompact-out/converted", "folded", "--json").out)
    assert folded["macs"] == made["macs"]["after"]
    again = run("convert", "test_vit", "again", *SMALL, "--data-dir", images, "--plan", planned["plan_file"], "--json")
    assert json.loads(again.out)["macs"] == made["macs"]
    pair = json.loads(run("convert", "--ratio", "0.5", "--overwrite", "--json").out)  # replaces the recorded target
    assert "hallucinate" in {op["op"] for layer in pair["plan"]["layers"] for op in layer["operators"]}
    assert "neurons" not in {op["op"] for layer in pair["plan"]["layers"] for op in layer["operators"]}


@pytest.mark.broad
def test_merging_tokens_shares_a_budget(run: Run, images: Path, tmp_path: Path) -> None:
    """From the analysis to the folded model, through training; what was chosen is said at each stage."""
    given = ("--data-dir", images, "--target-macs", 0.8, "--merge-tokens", "auto", "--json")
    merging = json.loads(run("analyze", "test_vit", *SMALL, *given).out)["budget"]["merging"]
    assert {"merge_tokens", "saving", "harm", "curve"} <= merging.keys()
    assert "merging tokens" in run("analyze", "test_vit", *SMALL, *given[:-1]).out
    converted = run("convert", "--json")
    assert "--merge-tokens auto" in converted.err
    assert json.loads(converted.out)["plan"].get("merge_tokens", []) == merging["merge_tokens"]
    assert run("convert", "--ratio", 0.5, "--overwrite").code == 0  # without a budget nothing is left to share


def test_numbers_of_tokens_to_merge_go_from_convert_to_fold(run: Run, images: Path, tmp_path: Path) -> None:
    plain = json.loads(run("convert", "test_vit", "plain", *SMALL, *PAIR, "--data-dir", images, "--json").out)
    result = run("convert", "test_vit", *SMALL, *PAIR, "--data-dir", images, "--merge-tokens", "1,0", "--json")
    document = json.loads(result.out)
    assert document["plan"]["merge_tokens"] == [1, 0]
    assert document["macs"]["after"] < plain["macs"]["after"]
    assert run("finetune", "--steps", 1).code == 0
    assert json.loads(run("fold", "--json").out)["merging"]["merge_tokens"] == [1, 0]
    assert (
        "1 pair of tokens, 0 to 1 per block" in run("convert", "--plan", "vitcompact-out/plan.json", "--overwrite").out
    )
