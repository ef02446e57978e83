"""What `save` writes, and that it writes everything or nothing."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file
from timm.models import VisionTransformer
from torch import nn

from vitcompact import __version__
from vitcompact.checkpoint import Provenance, Record, SourceOptions, disk, load, load_source, read_record, save, write
from vitcompact.errors import CheckpointError, UsageError
from vitcompact.operators.factorize import FactorizeSpec
from vitcompact.operators.replay import replay
from vitcompact.plans.schema import LayerPlan, Plan, Skipped

from .helpers import perturb

FILES = {"model.safetensors", "config.json", "vitcompact.json", "README.md"}
PLAN = Plan(
    layers=(LayerPlan("blocks.0.mlp", "ffn", (FactorizeSpec(rank=8, branches=1),)),),
    skipped=(Skipped("blocks.1.mlp", "protected"),),
)


def test_writes_the_hub_layout(vit: VisionTransformer, tmp_path: Path) -> None:
    vit.pretrained_cfg.update(num_classes=10, label_names=tuple("abcdefghij"))
    replay(vit, PLAN)
    out = save(vit, tmp_path / "deep" / "out")
    assert {path.name for path in out.iterdir()} == FILES
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert out.stat().st_mode & 0o777 == 0o777 & ~os.umask(os.umask(0o22))
    config = json.loads((out / "config.json").read_text())
    assert config["architecture"] == config["pretrained_cfg"]["architecture"] == "vitcompact"
    assert config["label_names"] == list("abcdefghij")
    assert config["num_classes"] == 10
    args = config["model_args"]
    assert (args["base"], args["img_size"], args["in_chans"], args["global_pool"]) == ("test_vit", [64, 64], 3, "token")
    assert "num_classes" not in args
    assert config["pretrained_cfg"]["input_size"] == [3, 64, 64]
    assert Plan.from_json(args["plan"]) == PLAN
    with safetensors.safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_record_and_card_say_what_they_were_given(vit: VisionTransformer, tmp_path: Path) -> None:
    provenance = Provenance("deit_tiny_patch16_224.fb_in1k", "timm", "deit_tiny_patch16_224", "f", "ab" * 32, 7)
    results = {
        "params": {"before": 1234567, "after": 987654},
        "top1": {"before": 93.38, "after": None},
        "fidelity": {"agreement": 0.98765},
        "seconds": float("nan"),
        "layers": [1, 2],
    }
    replay(vit, PLAN)
    options = {"ratio": 0.5, "data_dir": Path("images"), "dtype": torch.float16}
    out = save(vit, tmp_path / "out", provenance=provenance, options=options, results=results)
    record = read_record(out)
    assert (record.base, record.plan, record.provenance) == ("test_vit", PLAN, provenance)
    assert record.options == {"ratio": 0.5, "data_dir": "images", "dtype": "torch.float16"}
    assert record.results["seconds"] is None
    assert record.results["params"] == results["params"]
    assert record.versions["vitcompact"] == __version__
    assert record.versions.keys() == {"vitcompact", "torch", "timm", "python"}
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "timm"
    assert front["license"] == "apache-2.0"  # timm's description of the model says so
    assert front["base_model"] == "timm/deit_tiny_patch16_224.fb_in1k"
    assert "| parameters | 1.23 M | 987.7 k | -20.0 % |" in card
    assert "| top-1 | 93.38 % | not measured |" in card
    assert "| same top-1 class |  | 0.988 |" in card
    assert "Accuracy was not measured" in card
    assert "of `images`" in card
    assert "factorize, 1 layer(s)" in card
    assert 'timm.create_model("local-dir:out", pretrained=True)' in card
    assert "seconds" not in card
    assert "model-index" not in front


def test_the_card_invents_nothing(vit: VisionTransformer, tmp_path: Path) -> None:
    del vit.pretrained_cfg["license"]
    card = (save(vit, tmp_path / "out") / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "unknown"
    assert "base_model" not in front
    assert "Before and after" not in card
    assert "SHA-256" not in card
    assert "Limits" not in card  # nothing was done to it
    assert "How it was made" not in card


def test_the_card_names_no_folders(vit: VisionTransformer, tmp_path: Path) -> None:
    for source in ("/home/someone/vit", "local-dir:/home/someone/vit"):
        provenance = Provenance(source, "local-dir", "test_vit", "model.safetensors", "ab" * 32, 7)
        card = (save(vit, tmp_path / "out", provenance=provenance, overwrite=True) / "README.md").read_text()
        assert "weights `vit` (SHA-256 `abab" in card
        assert "someone" not in card


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3", "test_vit4"])
def test_reload_is_bit_exact_both_ways(name: str, tmp_path: Path) -> None:
    model = perturb(timm.create_model(name, pretrained=False, num_classes=3))
    out = save(model, tmp_path / "out")
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(load(out)(images), expected)
        assert torch.equal(timm.create_model(f"local-dir:{out}", pretrained=True).eval()(images), expected)
        assert torch.equal(load_source(str(out)).model(images), expected)


@pytest.mark.broad
def test_reload_is_bit_exact_in_a_fresh_process(vit: VisionTransformer, images: torch.Tensor, tmp_path: Path) -> None:
    out = save(vit, tmp_path / "out")
    with torch.no_grad():
        save_file({"images": images, "logits": vit(images)}, tmp_path / "expected.safetensors")
    script = (
        "import sys, timm, torch, vitcompact.checkpoint as c\n"
        "from safetensors.torch import load_file\n"
        "torch.set_num_threads(int(sys.argv[3]))\n"
        "expected = load_file(sys.argv[2])\n"
        "for m in (c.load(sys.argv[1]), timm.create_model('local-dir:' + sys.argv[1], pretrained=True).eval()):\n"
        "    assert torch.equal(m(expected['images']), expected['logits'])\n"
    )
    arguments = [str(out), str(tmp_path / "expected.safetensors"), str(torch.get_num_threads())]
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_saving_a_reloaded_model_again_changes_nothing(vit: VisionTransformer, tmp_path: Path) -> None:
    first = save(vit, tmp_path / "a", results={"x": 1})
    second = save(load(first), tmp_path / "b", results={"x": 1})
    for name in ("model.safetensors", "vitcompact.json", "config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    third: VisionTransformer = load(first)
    third.reset_classifier(4)
    assert load(save(third, tmp_path / "c")).num_classes == 4


def test_source_of_our_own_directory(vit: VisionTransformer, tmp_path: Path) -> None:
    loaded = load_source(str(save(vit, tmp_path / "out")), SourceOptions(num_classes=2))
    assert loaded.model.num_classes == 2
    assert (loaded.provenance.kind, loaded.provenance.architecture) == ("local-dir", "test_vit")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtype_casts_floating_tensors_only(vit: VisionTransformer, dtype: torch.dtype, tmp_path: Path) -> None:
    model = perturb(replay(vit, PLAN))  # its branches count batches in whole numbers
    again = load(save(model, tmp_path / "out", dtype=dtype))
    saved = load_file(tmp_path / "out" / "model.safetensors")
    counters = {name for name in saved if name.endswith("num_batches_tracked")}
    assert counters
    assert {saved.pop(name).dtype for name in counters} == {torch.int64}
    assert {tensor.dtype for tensor in saved.values()} == {dtype}
    assert {tensor.dtype for tensor in again.parameters()} == {torch.float32}
    assert torch.equal(again.get_parameter("head.weight"), model.get_parameter("head.weight").to(dtype).float())


def test_dtype_that_cannot_hold_the_weights_is_refused(vit: VisionTransformer, tmp_path: Path) -> None:
    with torch.no_grad():
        vit.head.weight[0, 0] = 1e6
    with pytest.raises(UsageError, match=r"float16 cannot hold head\.weight"):
        save(vit, tmp_path / "out", dtype=torch.float16)
    with pytest.raises(UsageError, match="floating-point"):
        save(vit, tmp_path / "out", dtype=torch.int8)
    assert list(tmp_path.iterdir()) == []


def test_shared_views_and_non_contiguous_tensors(vit: VisionTransformer, images: torch.Tensor, tmp_path: Path) -> None:
    with torch.no_grad():
        vit.blocks[0].mlp.fc1.weight = nn.Parameter(vit.blocks[0].mlp.fc1.weight.t().contiguous().t())
        vit.blocks[1].attn.proj.weight = vit.blocks[0].attn.proj.weight
        bank = torch.randn(2, *vit.blocks[0].mlp.fc2.bias.shape)
        vit.blocks[0].mlp.fc2.bias, vit.blocks[1].mlp.fc2.bias = nn.Parameter(bank[0]), nn.Parameter(bank[1])
        again = load(save(nn.DataParallel(vit), tmp_path / "out"))
        assert torch.equal(again(images), vit(images))
    assert (tmp_path / "out" / "model.safetensors").stat().st_size < 1.1 * sum(
        tensor.numel() * 4 for tensor in vit.state_dict().values()
    ) + 10_000


def test_weights_are_written_from_where_they_are(
    vit: VisionTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that fills the memory can still be saved."""
    own = {name: tensor.data_ptr() for name, tensor in vit.state_dict().items()}
    given: dict[str, int] = {}
    write_tensors = write.write_tensors

    def noted(tensors: Mapping[str, torch.Tensor], *args: Any) -> None:
        given.update({name: tensor.data_ptr() for name, tensor in tensors.items()})
        write_tensors(tensors, *args)

    monkeypatch.setattr(write, "write_tensors", noted)
    save(vit, tmp_path / "out")
    assert given == own


def test_an_existing_output_is_refused(vit: VisionTransformer, tmp_path: Path) -> None:
    out = save(vit, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UsageError, match=r"exists; give another directory, or `overwrite=True`"):
        save(vit, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        save(vit, tmp_path / "file", overwrite=True)


def test_overwrite_replaces_what_save_wrote(vit: VisionTransformer, tmp_path: Path) -> None:
    out = save(vit, tmp_path / "out")
    save(perturb(vit), out, overwrite=True)
    assert {path.name for path in out.iterdir()} == FILES == set(read_record(out).files)
    assert torch.equal(load(out).get_parameter("head.weight"), vit.head.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def add_a_file(out: Path) -> None:
    (out / "thesis.tex").write_text("x")


def add_a_folder(out: Path) -> None:
    (out / "cat").mkdir()
    (out / "cat" / "1.jpg").write_text("x")


def lose_the_record(out: Path) -> None:
    (out / "vitcompact.json").unlink()


def damage_the_record(out: Path) -> None:
    (out / "vitcompact.json").write_text("{")


def put_a_link(out: Path) -> None:
    (out / "README.md").unlink()
    (out / "README.md").symlink_to(out / "config.json")


def put_a_folder(out: Path) -> None:
    (out / "README.md").unlink()
    (out / "README.md").mkdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_a_file, "also holds thesis.tex"),
        (add_a_folder, "also holds cat"),
        (lose_the_record, "not known to be written by vitcompact"),
        (damage_the_record, "not known to be written by vitcompact"),
        (put_a_link, "also holds README.md"),
        (put_a_folder, "also holds README.md"),
    ],
)
def test_overwrite_removes_nothing_else(vit: VisionTransformer, tmp_path: Path, change: Any, message: str) -> None:
    out = save(vit, tmp_path / "out")
    change(out)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=message):
        save(vit, out, overwrite=True)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("inside", ["", "deep/er"])
def test_overwrite_never_takes_the_original(vit: VisionTransformer, tmp_path: Path, inside: str) -> None:
    out = save(vit, tmp_path / "out")
    (out / inside).mkdir(parents=True, exist_ok=True)
    provenance = Provenance(f"local-dir:{out / inside}", "local-dir", "test_vit")
    with pytest.raises(UsageError, match=r"(is|holds) the original, which this job reads"):
        save(vit, out, overwrite=True, provenance=provenance)
    assert {path.name for path in out.iterdir()} >= FILES


def test_a_file_that_appears_during_the_job_is_kept(
    vit: VisionTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = save(vit, tmp_path / "out")
    write_tensors = write.write_tensors

    def slow(*args: Any) -> None:
        write_tensors(*args)
        add_a_file(out)

    monkeypatch.setattr(write, "write_tensors", slow)
    with pytest.raises(UsageError, match=r"also holds thesis\.tex"):
        save(vit, out, overwrite=True)
    assert {path.name for path in out.iterdir()} == {*FILES, "thesis.tex"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_files_have_the_rights_that_the_umask_gives(vit: VisionTransformer, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        out = save(vit, tmp_path / "out")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o640}


def fail_with(error: BaseException) -> Any:
    def fail(tensors: object, path: Path, **kwargs: Any) -> None:
        Path(path).write_bytes(b"half")
        raise error

    return fail


FAILURES = [
    (OSError(errno.ENOSPC, "No space left on device"), UsageError, r"disk is full: .* needs [\d,]{6,} bytes"),
    (safetensors.SafetensorError("Error: No space left on device (os error 28)"), UsageError, "disk is full"),
    (PermissionError(errno.EACCES, "Permission denied"), UsageError, "Permission denied; nothing was written"),
    (KeyboardInterrupt(), KeyboardInterrupt, None),
]


@pytest.mark.parametrize(("error", "raised", "message"), FAILURES)
@pytest.mark.parametrize("exists", [False, True], ids=["new", "overwrite"])
def test_a_failing_disk_leaves_everything_as_it_was(
    vit: VisionTransformer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    raised: type[BaseException],
    message: str | None,
    exists: bool,
) -> None:
    out = tmp_path / "out"
    before = {path.name: path.read_bytes() for path in save(vit, out).iterdir()} if exists else None
    monkeypatch.setattr(disk.safetensors.torch, "save_file", fail_with(error))
    with pytest.raises(raised, match=message):
        save(perturb(vit), out, overwrite=exists)
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if exists else [])
    if exists:
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_models_that_cannot_be_rebuilt_are_refused(vit: VisionTransformer, tmp_path: Path) -> None:
    features = timm.create_model("test_vit", pretrained=False, features_only=True)
    for model in (nn.Linear(2, 2), features):
        with pytest.raises(UsageError, match=r"expected a model made by timm\.create_model"):
            save(model, tmp_path / "out")
    with pytest.raises(UsageError, match=r"cannot save a Sequential: .* the one inside it is `model\.0`"):
        save(nn.Sequential(vit, nn.ReLU()), tmp_path / "out")
    odd = timm.create_model("test_vit", pretrained=False, norm_layer=nn.LayerNorm)
    with pytest.raises(UsageError, match="norm_layer"):
        save(odd, tmp_path / "out")
    with pytest.raises(UsageError, match="plain data, got a Linear"):
        save(vit, tmp_path / "out", options={"x": nn.Linear(1, 1)})
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_pickled(vit: VisionTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: Any) -> None:
        raise AssertionError("pickle")

    for function in ("save", "load"):
        monkeypatch.setattr(torch, function, refuse)
    load(save(vit, tmp_path / "out"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: "[]",
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: text.replace('"base": "test_vit"', '"base": 5'),
        lambda text: text.replace('"provenance": null', '"provenance": {"source": 1}'),
        lambda text: text.replace('"version": 1', '"version": 77'),
        lambda text: "[" * 100_000,
    ],
)
def test_a_damaged_record_is_one_clear_error(vit: VisionTransformer, tmp_path: Path, damage: Any) -> None:
    out = save(vit, tmp_path / "out")
    path = out / "vitcompact.json"
    damaged = damage(path.read_text())
    assert damaged != path.read_text()
    path.write_text(damaged)
    with pytest.raises(CheckpointError, match=r"vitcompact\.json is damaged"):
        read_record(out)


def test_a_directory_without_a_record_is_not_ours(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a vitcompact checkpoint"):
        read_record(tmp_path)


def test_record_round_trip() -> None:
    record = Record("test_vit", PLAN, Provenance("a", "random", "b"), {"x": [1, "two", None]}, {"y": 0.5})
    assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_refusal_comes_before_the_weights_are_gathered(
    vit: VisionTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(vit, tmp_path / "out")
    monkeypatch.setattr(write, "_tensors", fail_with(AssertionError()))
    with pytest.raises(UsageError, match="exists"):
        save(vit, tmp_path / "out")


def test_what_exists_is_kept_unless_asked_otherwise(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists; give another directory"):
        disk.check_out(tmp_path)


class Quantized(torch.Tensor):
    """What libraries of quantization put in the place of a weight."""


@pytest.mark.parametrize("place", ["head.weight", "blocks.0.attn.qkv.weight", "pos_embed"])
def test_weights_that_are_no_plain_tensors(place: str, tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=2, img_size=32)
    owner, _, name = place.rpartition(".")
    plain = model.get_parameter(place).detach()
    setattr(model.get_submodule(owner), name, torch.nn.Parameter(plain.as_subclass(Quantized), requires_grad=False))
    with pytest.raises(UsageError, match=rf"{place} is a \w+, not a plain tensor: save the model before"):
        save(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())
