"""Nothing is looked up or connected to unless a SOURCE names the hub, whatever files say of it."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from vitcompact.checkpoint import hub

from .commands import Run


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine that has a network, with everything that reaches for it written down and refused."""
    asked: list[str] = []

    def refuse(name: str) -> Any:
        def call(*args: object, **kwargs: object) -> None:
            asked.append(f"{name} {args[-1:]}")
            raise OSError("no network in this test")

        return call

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_offline", lambda: False)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse(name))
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse(name))
    return asked


def test_local_work_stays_local(run: Run, job: Path, online: list[str], images: Path) -> None:
    path = job / "folded" / "config.json"
    config = json.loads(path.read_text())
    remote = {"url": "https://example.org/x", "hf_hub_id": "org/name", "source": "hf-hub", "hf_hub_filename": "x"}
    config["pretrained_cfg"] |= remote
    config["model_args"]["pretrained"] = True
    config |= remote
    path.write_text(json.dumps(config))
    assert run("eval", job / "folded", "--data-dir", images, "--num-samples", "1").code in (0, 4)
    assert run("fold", "--overwrite").code == 0
    assert run("convert", "--ratio", "0.5", "--dry-run").code == 0
    assert run("eval", "nowhere.safetensors").code == 2
    assert run("eval", "org/name").code == 2
    assert online == []


def test_the_hub_is_asked_where_it_was_named(run: Run, online: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between tries
    result = run("eval", "hf-hub:org/name", "--data-dir", ".")
    assert result.code == 2
    assert online != []
