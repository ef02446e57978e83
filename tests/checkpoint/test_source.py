"""Every form of SOURCE, and what is said about each that does not work."""

from __future__ import annotations

import argparse
import json
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import VisionTransformer, get_pretrained_cfg
from timm.models._hub import save_for_hf
from torch import nn

from vitcompact.checkpoint import LoadedModel, Provenance, SourceOptions, candidates, hub, load, load_source, save
from vitcompact.checkpoint.infer import meta_model
from vitcompact.checkpoint.matching import find_filter
from vitcompact.checkpoint.provenance import sha256_of
from vitcompact.errors import CheckpointError, UsageError

from .helpers import perturb


def unset(provenance: Provenance) -> Provenance:
    """Where a model came from, without the hash of its settings and without how it was read."""
    assert provenance.settings is not None
    return replace(provenance, settings=None, read_as=None)


@pytest.fixture
def hub_dir(vit: nn.Module, tmp_path: Path) -> Path:
    """A directory as timm writes it."""
    save_for_hf(vit, str(tmp_path / "hub"), safe_serialization=True)
    return tmp_path / "hub"


def config_of(loaded: LoadedModel) -> Mapping[str, Any]:
    assert isinstance(loaded.model.pretrained_cfg, Mapping)
    return loaded.model.pretrained_cfg


def assert_same(loaded: LoadedModel, original: nn.Module, images: torch.Tensor) -> None:
    assert not loaded.model.training
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    with torch.no_grad():
        assert torch.equal(loaded.model(images), original(images))


def test_directory_in_three_spellings(vit: VisionTransformer, hub_dir: Path, images: torch.Tensor) -> None:
    for source in (str(hub_dir), f"local-dir:{hub_dir}", f"{hub_dir}/"):
        loaded = load_source(source)
        assert_same(loaded, vit, images)
        assert unset(loaded.provenance) == Provenance(
            source,
            "local-dir",
            "test_vit",
            "model.safetensors",
            sha256_of(hub_dir / "model.safetensors"),
            (hub_dir / "model.safetensors").stat().st_size,
        )


def test_hub_model_is_read_like_its_directory(
    vit: VisionTransformer, hub_dir: Path, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cached(repo_id: str, filename: str, cache_dir: object = None, revision: str | None = None) -> str:
        assert (repo_id, revision) == ("org/name", "main")
        return str(hub_dir / filename)

    monkeypatch.setattr(hub, "try_to_load_from_cache", cached)
    loaded = load_source("hf-hub:org/name@main")
    assert_same(loaded, vit, images)
    assert loaded.provenance.kind == "hf-hub"


def test_weights_file_with_a_name(vit: VisionTransformer, weights_file: Path, images: torch.Tensor) -> None:
    loaded = load_source(str(weights_file), SourceOptions(model="test_vit"))
    assert_same(loaded, vit, images)
    assert loaded.model.num_classes == 10
    assert loaded.model.get_submodule("patch_embed").img_size == (64, 64)
    assert config_of(loaded)["input_size"] == (3, 64, 64)
    assert unset(loaded.provenance) == Provenance.of_file(str(weights_file), "file", "test_vit", weights_file)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("test_vit", {"in_chans": 1, "num_classes": 0}),
        ("test_vit2", {"img_size": 96, "num_classes": 3}),
        ("test_vit3", {"img_size": 128}),
        ("test_vit4", {"global_pool": "avg", "num_classes": 5}),
        ("pvt_v2_b0", {"num_classes": 7}),
        ("test_vit", {"global_pool": "avg", "class_token": False, "fc_norm": True}),
    ],
)
def test_arguments_are_read_off_the_weights(tmp_path: Path, name: str, kwargs: dict[str, Any]) -> None:
    model = perturb(timm.create_model(name, pretrained=False, **kwargs))
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    images = torch.randn(1, kwargs.get("in_chans", 3), *[kwargs.get("img_size", 160 if "test" in name else 64)] * 2)
    loaded = load_source(str(tmp_path / "w.safetensors"), SourceOptions(model=name))
    if kwargs == {"global_pool": "avg", "num_classes": 5}:  # pooling has no weights of its own here
        assert loaded.model.state_dict().keys() == model.state_dict().keys()
    else:
        assert_same(loaded, model, images)


def test_recorded_architecture_and_size_are_used(vit: VisionTransformer, tmp_path: Path, images: torch.Tensor) -> None:
    wrapped = {f"module.{name}": tensor for name, tensor in vit.state_dict().items()}
    zeros = {name: torch.zeros_like(tensor) for name, tensor in wrapped.items()}
    args = argparse.Namespace(model="test_vit")
    torch.save({"state_dict": zeros, "state_dict_ema": wrapped, "args": args}, tmp_path / "best.pth.tar")
    assert_same(load_source(str(tmp_path / "best.pth.tar")), vit, images)


def test_without_a_name_candidates_are_listed(weights_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ["resnet18", "pvt_v2_b0", "test_vit", "test_vit2", "test_vit3", "vit_tiny_patch16_224"]
    monkeypatch.setattr(candidates, "architectures", lambda: pool)
    with pytest.raises(UsageError, match=r"`model='NAME'`\. Its shapes are those of `model='test_vit'`\.$"):
        load_source(str(weights_file))


def test_candidates_may_differ_in_classes_and_image_size_only(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["test_vit", "vit_tiny_patch16_224", "vit_tiny_patch16_384", "deit_tiny_patch16_224"]
    monkeypatch.setattr(candidates, "architectures", lambda: names)
    state_dict = meta_model("vit_tiny_patch16_224", num_classes=3, img_size=96).state_dict()
    found = candidates.candidates(state_dict, seconds=30)
    assert set(found) == set(names[1:])
    assert candidates.candidates(state_dict, seconds=30, limit=2) == found[:2]
    assert candidates.candidates({"a": torch.zeros(1)}) == []


@pytest.mark.slow
def test_candidates_among_all_of_timm_within_seconds(weights_file: Path) -> None:
    started = time.monotonic()
    with pytest.raises(UsageError, match=" `model='test_vit'`"):
        load_source(str(weights_file))
    assert time.monotonic() - started < 10


def test_a_file_beside_its_config_is_read_by_it(vit: nn.Module, hub_dir: Path, images: torch.Tensor) -> None:
    assert_same(load_source(str(hub_dir / "model.safetensors")), vit, images)


def test_a_file_beside_a_config_of_ours_points_at_the_directory(vit: nn.Module, tmp_path: Path) -> None:
    save(vit, tmp_path / "ours")
    with pytest.raises(UsageError, match="give that directory"):
        load_source(str(tmp_path / "ours" / "model.safetensors"))


def test_another_number_of_classes_leaves_the_head_untrained(
    vit: VisionTransformer, hub_dir: Path, weights_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for source, model in ((hub_dir, None), (weights_file, "test_vit")):
        caplog.clear()
        options = SourceOptions(model=model, num_classes=4, seed=3)
        first: VisionTransformer
        first, second = (load_source(str(source), options).model for _ in range(2))
        assert first.head.weight.shape[0] == 4
        assert torch.equal(first.head.weight, second.get_parameter("head.weight"))
        assert torch.equal(first.blocks[0].mlp.fc1.weight, vit.blocks[0].mlp.fc1.weight)
        assert "untrained one of 4 classes" in caplog.text


def test_another_image_size_resamples_as_timm_does(hub_dir: Path, weights_file: Path) -> None:
    expected = timm.create_model(f"local-dir:{hub_dir}", pretrained=True, img_size=96).pos_embed
    for source, model in ((hub_dir, None), (weights_file, "test_vit")):
        loaded: VisionTransformer = load_source(str(source), SourceOptions(model=model, img_size=96)).model
        assert loaded.patch_embed.img_size == (96, 96)
        assert torch.equal(loaded.pos_embed, expected)


def test_image_size_of_a_flexible_model_is_recorded(tmp_path: Path) -> None:
    save_file(timm.create_model("pvt_v2_b0", pretrained=False).state_dict(), tmp_path / "p.safetensors")
    loaded = load_source(str(tmp_path / "p.safetensors"), SourceOptions(model="pvt_v2_b0", img_size=(64, 96)))
    assert config_of(loaded)["input_size"] == (3, 64, 96)


def test_foreign_layout_is_converted_as_timm_does(tmp_path: Path) -> None:
    model = perturb(timm.create_model("test_vit", pretrained=False))
    foreign = {f"visual.trunk.{name}": tensor for name, tensor in model.state_dict().items() if "head" not in name}
    foreign["visual.head.proj.weight"] = model.get_parameter(
        "head.weight"
    ).detach()  # as OpenCLIP stores a timm image tower
    foreign["logit_scale"] = torch.zeros(())
    torch.save({"state_dict": foreign}, tmp_path / "clip.pt")
    loaded = load_source(str(tmp_path / "clip.pt"), SourceOptions(model="test_vit")).model.state_dict()
    expected = {**model.state_dict(), "head.bias": torch.zeros(1000)}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_layer_scale_of_the_original_deit3_is_renamed() -> None:
    convert = find_filter("deit3_small_patch16_224")
    assert convert is not None
    assert convert({"blocks.0.gamma_1": torch.ones(2)}, nn.Module()).keys() == {"blocks.0.ls1.gamma"}


def test_weights_of_another_architecture_are_summarised(weights_file: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_source(str(weights_file), SourceOptions(model="test_vit2"))
    message = str(caught.value)
    assert "its last normalisation is before pooling" in message
    assert "\n" not in message
    with pytest.raises(CheckpointError, match=r"24 missing from the file \(blocks\.6\.norm1\.weight, .*, …\)"):
        load_source(str(weights_file), SourceOptions(model="test_vit2", global_pool="token"))
    with pytest.raises(CheckpointError, match=r"with another shape \(.*file \(.*model \("):
        load_source(str(weights_file), SourceOptions(model="vit_tiny_patch16_224"))


@pytest.mark.parametrize("num_classes", [None, 4])
def test_a_directory_never_loads_partially(hub_dir: Path, num_classes: int | None) -> None:
    from safetensors.torch import load_file

    tensors = load_file(hub_dir / "model.safetensors")
    del tensors["blocks.1.mlp.fc1.weight"]
    save_file(tensors, hub_dir / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing from the file \(blocks\.1\.mlp\.fc1\.weight\)"):
        load_source(str(hub_dir), SourceOptions(num_classes=num_classes))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{not json", "damaged"),
        ("[]", "damaged"),
        ('{"architecture": "no_such_vit", "pretrained_cfg": {}}', "unknown timm model"),
        ('{"architecture": "test_vit", "pretrained_cfg": {"surprise": 1}}', "surprise"),
        ('{"architecture": "test_vit", "pretrained_cfg": {}, "model_args": {"surprise": 1}}', "surprise"),
        ('{"architecture": "test_vit", "pretrained_cfg": {}, "model_args": {"pretrained": true}}', "pretrained"),
        ('{"architecture": "test_vit", "pretrained_cfg": 3}', "damaged"),
    ],
)
def test_a_damaged_config_is_one_clear_error(hub_dir: Path, config: str, message: str) -> None:
    (hub_dir / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=message):
        load_source(str(hub_dir))


def test_license_of_the_source_card_is_kept(hub_dir: Path, tmp_path: Path) -> None:
    (hub_dir / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# a model\n")
    save(load(hub_dir), tmp_path / "out")
    assert "license: cc-by-4.0" in (tmp_path / "out" / "README.md").read_text()


def test_license_of_timms_weights_is_not_that_of_others(weights_file: Path) -> None:
    registered = get_pretrained_cfg("test_vit")
    assert registered is not None
    assert registered.license
    for source, options in (
        (str(weights_file), SourceOptions(model="test_vit")),
        ("test_vit", SourceOptions(random_weights=True)),
    ):
        assert config_of(load_source(source, options)).keys().isdisjoint({"license", "hf_hub_id", "url"})


def test_random_weights_are_seeded_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    first, second, other = (
        load_source("test_vit", SourceOptions(random_weights=True, seed=seed, num_classes=5)) for seed in (1, 1, 2)
    )
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(*(each.model.get_parameter("head.weight") for each in (first, second)))
    assert not torch.equal(*(each.model.get_parameter("head.weight") for each in (first, other)))
    assert unset(first.provenance) == Provenance("test_vit", "random", "test_vit")


def test_pretrained_timm_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, images: torch.Tensor) -> None:
    original = perturb(timm.create_model("test_vit", pretrained=False))
    path = tmp_path / "model.safetensors"
    save_file(original.state_dict(), path)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *args, **kwargs: str(path))
    loaded = load_source("test_vit.r160_in1k", SourceOptions(img_size=64))
    assert unset(loaded.provenance) == Provenance.of_file("test_vit.r160_in1k", "timm", "test_vit", path)
    assert torch.equal(loaded.model.get_parameter("head.weight"), original.get_parameter("head.weight"))
    assert config_of(loaded)["hf_hub_id"] == "timm/test_vit.r160_in1k"
    assert "file" not in config_of(loaded)
    assert loaded.model(images).shape == (2, 1000)


def test_offline_is_one_clear_error_at_once(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def unresolvable(*args: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *args, **kwargs: None)
    monkeypatch.setattr(socket, "getaddrinfo", unresolvable)
    for name in hub._PROXIES:
        monkeypatch.delenv(name, raising=False)
    for source in ("test_vit.r160_in1k", "hf-hub:org/name"):
        with pytest.raises(UsageError, match=r"cannot download.*`random_weights`"):
            load_source(source)
    assert capfd.readouterr() == ("", "")


def test_a_failing_download_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: Any) -> None:
        raise ConnectionError("reset by peer\nand a long trace")

    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *args, **kwargs: None)
    monkeypatch.setattr(hub, "_offline", lambda: False)
    monkeypatch.setattr(hub, "download_from_hf", fail)
    with pytest.raises(UsageError, match=r"reset by peer; give a local directory"):
        load_source("test_vit.r160_in1k")


def test_a_model_without_pretrained_weights_says_so() -> None:
    name = next(name for name in timm.list_models("vit_*") if not timm.is_model_pretrained(name))
    with pytest.raises(UsageError, match=f"no weights of {name}; give a weights file with `model='{name}'`"):
        load_source(name)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("deit_smal_patch16_224", "did you mean deit_small_patch16_224"),
        ("deit_small_patch16_224.fb_in2k", r"known: deit_small_patch16_224\.fb_in1k"),
        ("vitcompact", "unknown timm model"),
        ("zzzzqqqq", "unknown timm model"),
        ("timm/vit_small", "give hf-hub:timm/vit_small"),
        ("./nowhere/at/all", "no such file or directory"),
        ("missing.safetensors", "no such file or directory"),
        ("local-dir:/no/such/dir", "no such directory"),
        ("", "SOURCE is empty"),
    ],
)
def test_unknown_sources_say_what_was_probably_meant(source: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_source(source)


def test_options_that_do_not_apply_are_refused(hub_dir: Path, weights_file: Path) -> None:
    for source in (str(hub_dir), "test_vit"):
        with pytest.raises(UsageError, match="`model` names the architecture of a bare weights file"):
            load_source(source, SourceOptions(model="test_vit"))
    for source in (str(hub_dir), str(weights_file)):
        with pytest.raises(UsageError, match="`random_weights` needs a timm model name"):
            load_source(source, SourceOptions(random_weights=True))
    with pytest.raises(UsageError, match="unknown timm model"):
        load_source(str(weights_file), SourceOptions(model="test_vti"))
    with pytest.raises(UsageError, match="num_classes"):
        SourceOptions(num_classes=-1)
    with pytest.raises(UsageError, match="img_size"):
        SourceOptions(img_size=(0, 5))


def test_an_empty_directory_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.json"):
        load_source(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", "pretrained_cfg": {}}))
    with pytest.raises(CheckpointError, match="no weights file"):
        load_source(str(tmp_path))


def test_provenance_round_trip() -> None:
    for provenance in (Provenance("a", "random", "b"), Provenance("a", "file", "b", "c", "d", 5)):
        assert Provenance.from_json(json.loads(json.dumps(provenance.to_json()))) == provenance
    for damaged in ({}, {"source": 1, "kind": "file", "architecture": "b"}, {"source": "a", "kind": "x", "z": 0}):
        with pytest.raises(CheckpointError, match="malformed provenance"):
            Provenance.from_json(damaged)
