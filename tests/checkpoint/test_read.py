"""Weights files: every wrapper is understood, every damaged or hostile one is refused by name."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vitcompact.checkpoint.provenance import sha256_of
from vitcompact.checkpoint.read import read_weights
from vitcompact.errors import CheckpointError, UsageError

from .helpers import header


class Bomb:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, target: Path) -> None:
        self.command = f"touch {target}"

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pth.tar", ".bin"])
def test_reads_what_torch_saved(vit: nn.Module, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"vit{suffix}"
    torch.save(vit.state_dict(), path)
    weights = read_weights(path)
    assert torch.equal(weights.state_dict["head.weight"], vit.state_dict()["head.weight"])


def test_reads_safetensors(vit: nn.Module, weights_file: Path) -> None:
    read = read_weights(weights_file).state_dict
    assert read.keys() == vit.state_dict().keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in vit.state_dict().items())


def test_prefers_averaged_weights_and_removes_wrapper_prefixes(tmp_path: Path) -> None:
    plain, averaged = {"module.a": torch.zeros(2)}, {"_orig_mod.module.a": torch.ones(2)}
    torch.save({"state_dict": plain, "state_dict_ema": averaged}, tmp_path / "both.pth")
    torch.save({"model": plain, "model_ema": None}, tmp_path / "one.pth")
    assert torch.equal(read_weights(tmp_path / "both.pth").state_dict["a"], torch.ones(2))
    assert torch.equal(read_weights(tmp_path / "one.pth").state_dict["a"], torch.zeros(2))


def test_finds_what_timms_trainer_recorded(tmp_path: Path) -> None:
    args = argparse.Namespace(model="test_vit2", img_size=None, input_size=[3, 96, 80])
    torch.save({"state_dict": {"a": torch.zeros(1)}, "args": args}, tmp_path / "args.pth.tar")
    torch.save({"state_dict": {"a": torch.zeros(1)}, "arch": "test_vit"}, tmp_path / "arch.pth.tar")
    weights = read_weights(tmp_path / "args.pth.tar")
    assert (weights.architecture, weights.img_size) == ("test_vit2", (96, 80))
    assert read_weights(tmp_path / "arch.pth.tar").architecture == "test_vit"


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_refuses_a_pickle_with_code_by_name(tmp_path: Path, legacy: bool, protocol: int) -> None:
    target, path = tmp_path / "ran", tmp_path / "bomb.pth"
    content = {"weight": torch.zeros(2), "bytes": b"\xff", "state_dict": Bomb(target)}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"refused: it is a pickle that refers to (posix|os|nt)\.system, and"):
        read_weights(path)
    assert not target.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_refuses_a_bare_pickle_with_code_by_name(tmp_path: Path, protocol: int) -> None:
    target, path = tmp_path / "ran", tmp_path / "bomb.pt"
    path.write_bytes(pickle.dumps([{}, Bomb(target)], protocol=protocol))
    with pytest.raises(CheckpointError, match=r"refused.*(posix|os|nt)\.system"):
        read_weights(path)
    assert not target.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"(S'touch {}'\nios\nsystem\n.",
        b"\x80\x02cos\nsystem\nX\x08\x00\x00\x00touch {}\x85R.",
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940h\x000h\x00h\x01\x93\x8c\x08touch {}\x85R.",
    ],
    ids=["INST", "GLOBAL", "STACK_GLOBAL with names from the memo"],
)
def test_refuses_code_in_any_spelling_by_name(tmp_path: Path, opcodes: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bomb.pt").write_bytes(opcodes)
    with pytest.raises(CheckpointError, match=r"refers to os\.system, and"):
        read_weights(tmp_path / "bomb.pt")
    assert not (tmp_path / "{}").exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_protocol_that_torch_does_not_read_is_no_accusation(tmp_path: Path, legacy: bool) -> None:
    content = {"a": torch.zeros(1), "b": b"\xff", "c": {1, 2}}
    torch.save(content, tmp_path / "a.pth", pickle_protocol=4, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"is not a checkpoint that torch\.load can read"):
        read_weights(tmp_path / "a.pth")


def test_refuses_what_is_no_checkpoint(tmp_path: Path) -> None:
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_text("hello, this is a text file and no checkpoint at all")
        with pytest.raises(CheckpointError, match="is not a"):
            read_weights(tmp_path / name)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_refuses_an_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match="is empty"):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("keep", [4, 40, 0.5, 0.999])
def test_refuses_truncated_safetensors(weights_file: Path, keep: float) -> None:
    data = weights_file.read_bytes()
    weights_file.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(CheckpointError, match="truncated"):
        read_weights(weights_file)


@pytest.mark.parametrize("length", [2**64 - 1, 2**64 - 8, 2**63, 200_000_000, 99_000_000, 100])
def test_refuses_a_header_longer_than_the_file_or_the_format_allows(tmp_path: Path, length: int) -> None:
    path = tmp_path / "big.safetensors"
    path.write_bytes(header(length) + b"{}")
    with pytest.raises(CheckpointError, match=r"^.*is not a safetensors file.*header.*$") as refusal:
        read_weights(path)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("keep", [10, 0.5, 0.99])
def test_refuses_a_truncated_pickle(vit: nn.Module, tmp_path: Path, keep: float) -> None:
    path = tmp_path / "vit.pth"
    torch.save(vit.state_dict(), path)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(CheckpointError, match="damaged"):
        read_weights(path)


def test_refuses_an_archive_that_unpacks_to_far_more(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (1 << 23))
    with pytest.raises(CheckpointError, match="unpack"):
        read_weights(path)


def test_refuses_tensors_that_claim_more_than_the_file_holds(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(1 << 40)}, tmp_path / "claim.pth")
    with pytest.raises(CheckpointError, match="claim"):
        read_weights(tmp_path / "claim.pth")


@pytest.mark.parametrize("content", [{"epoch": 3, "lr": 0.1}, {"state_dict": {}}, {}])
def test_refuses_a_dictionary_without_tensors(tmp_path: Path, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="no tensors"):
        read_weights(tmp_path / "none.pth")


def test_refuses_a_bare_tensor(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(CheckpointError, match="holds a Tensor"):
        read_weights(tmp_path / "tensor.pth")


def test_warns_about_weights_that_are_not_finite(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = {"fine": torch.zeros(2), "bad": torch.tensor([1.0, float("nan")]), "worse": torch.tensor([float("inf")])}
    torch.save(tensors, tmp_path / "nan.pth")
    with caplog.at_level(logging.WARNING, logger="vitcompact"):
        assert len(read_weights(tmp_path / "nan.pth").state_dict) == 3
    assert "tensor bad holds NaN" in caplog.text
    assert "worse" not in caplog.text


def test_a_missing_file_or_an_unknown_suffix_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_weights(tmp_path / "absent.pth")
    (tmp_path / "a.h5").touch()
    with pytest.raises(UsageError, match=r"accepted: \.safetensors"):
        read_weights(tmp_path / "a.h5")


def test_sha256_is_that_of_the_whole_file(tmp_path: Path) -> None:
    data = os.urandom((1 << 20) + 7)
    (tmp_path / "a").write_bytes(data)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(data).hexdigest()
