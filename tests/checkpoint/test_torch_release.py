"""A torch that would run code out of a pickle reads none, whatever the installed requirement says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from vitcompact.checkpoint.read import read_weights
from vitcompact.errors import CheckpointError

UNSAFE = ["2.4.1", "2.5.0", "2.6.0", "2.9.1", "2.9.1+cu128", "2.10.0a0", "2.10.0.dev20251201+cpu", "2.10.0rc3"]
SAFE = ["2.10.0", "2.10.0+cu128", "2.10.1a0", "2.13.0", "2.100.0", "3.0"]


@pytest.mark.parametrize("version", UNSAFE)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pth.tar", ".bin"])
def test_an_unsafe_torch_reads_no_pickle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, suffix: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save({"a": torch.ones(2)}, path)
    opened: list[object] = []
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: opened.append(args))
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert caught.value.exit_code == 4
    assert message.startswith(f"{path} is refused")
    assert all(word in message for word in (version, "CVE-2026-24747", "install torch 2.13", "safetensors"))
    assert "\n" not in message
    assert not opened


@pytest.mark.parametrize("version", SAFE)
def test_a_safe_torch_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "weights.pth")
    monkeypatch.setattr(torch, "__version__", version)
    assert torch.equal(read_weights(tmp_path / "weights.pth").state_dict["a"], torch.ones(2))


def test_safetensors_are_read_by_any_torch(vit: nn.Module, weights_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.4.1")
    assert read_weights(weights_file).state_dict.keys() == vit.state_dict().keys()
