"""What goes up to the hub, and what does not; nothing here has a connection."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

import vitcompact
from vitcompact import CheckpointError, UsageError
from vitcompact.checkpoint import hub_push

OURS = ["README.md", "config.json", "model.safetensors", "vitcompact.json"]


class FakeHub:
    """Notes what the hub is asked for; `refuses` is raised by all of it."""

    calls: list[tuple[str, dict[str, Any]]]

    def __init__(self, refuses: Exception | None = None) -> None:
        self.calls, self.refuses = [], refuses

    def __getattr__(self, name: str) -> Any:
        def call(*names: str, **rest: Any) -> Any:
            if self.refuses:
                raise self.refuses
            self.calls.append((name, {**({"repo_id": names[0]} if names else {}), **rest}))
            return SimpleNamespace(commit_url="https://hub/commit")

        return call


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = timm.create_model("test_vit", num_classes=3, img_size=32, depth=2).eval()
    return vitcompact.save(vitcompact.fold(vitcompact.convert(model)), tmp_path_factory.mktemp("saved") / "out")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr(hub_push, "HfApi", lambda: fake)
    monkeypatch.setattr(hub_push.constants, "HF_HUB_OFFLINE", False)
    return fake


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was asked for")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_a_dry_run_asks_nobody(folded: Path, hub: FakeHub) -> None:
    found = vitcompact.push(folded, "org/name", dry_run=True)
    assert list(found.files) == OURS
    assert all(count == (folded / name).stat().st_size for name, count in found.files.items())
    assert (found.url, hub.calls) == (None, [])


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, ["create_repo", "upload_folder"]),
        ({"private": True}, ["create_repo", "upload_folder"]),
        ({"revision": "v2"}, ["create_repo", "create_branch", "upload_folder"]),
    ],
)
def test_a_model_goes_up_with_its_record(
    options: dict[str, Any], steps: list[str], folded: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = vitcompact.push(folded, "org/name", **options)
    assert [name for name, _ in hub.calls] == steps
    made, sent = hub.calls[0][1], hub.calls[-1][1]
    assert made == {"repo_id": "org/name", "private": options.get("private"), "exist_ok": True}
    assert (sent["repo_id"], Path(sent["folder_path"]), sent["allow_patterns"]) == ("org/name", folded, OURS)
    assert sent["revision"] == options.get("revision")
    assert found.url == "https://hub/commit"
    told = json.dumps([found.to_json(), [str(call) for call in hub.calls]])
    assert "hf_secret" not in told
    assert "token" not in told


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        ("extra", UsageError, "also holds notes.txt"),
        ("link", UsageError, "also holds README.md"),
        ("missing", CheckpointError, "not complete: README.md missing"),
        ("cut", CheckpointError, "model.safetensors"),
        ("training", UsageError, "in training form; fold it first"),
        ("foreign", UsageError, "vitcompact"),
        ("absent", UsageError, "vitcompact"),
    ],
)
@pytest.mark.usefixtures("no_network")
def test_what_is_not_finished_or_not_ours_stays(
    damage: str, error: type[Exception], message: str, folded: Path, hub: FakeHub, tmp_path: Path
) -> None:
    path = tmp_path / "out"
    shutil.copytree(folded, path)
    record = json.loads((path / "vitcompact.json").read_text())
    if damage == "extra":
        (path / "notes.txt").write_text("mine")
    elif damage == "link":
        (path / "README.md").unlink()
        (path / "README.md").symlink_to(folded / "README.md")
    elif damage == "missing":
        (path / "README.md").unlink()
    elif damage == "cut":
        (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-100])
    elif damage == "training":
        record["plan"]["form"] = "training"
        (path / "vitcompact.json").write_text(json.dumps(record))
    elif damage == "foreign":
        (path / "vitcompact.json").unlink()
    else:
        shutil.rmtree(path)
    with pytest.raises(error, match=message):
        vitcompact.push(path, "org/name")
    assert hub.calls == []


@pytest.mark.parametrize("name", ["", "a/b/c", "-x/y", "org/na me", "org/..", "https://hub/org/name"])
def test_names_that_the_hub_does_not_take(name: str, folded: Path, hub: FakeHub) -> None:
    with pytest.raises(UsageError, match="no name of a repository, which is ORG/NAME"):
        vitcompact.push(folded, name)
    assert hub.calls == []


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (LocalTokenNotFoundError("no token"), "log in with 'hf auth login'"),
        (401, "log in with 'hf auth login'"),
        (403, "log in with 'hf auth login'"),
        (500, "it broke"),
        (ConnectionError("no route to host"), "no route to host"),
    ],
)
def test_refusals_of_the_hub_are_one_line(refusal: Any, message: str, folded: Path, hub: FakeHub) -> None:
    if isinstance(refusal, int):
        answer: Any = SimpleNamespace(status_code=refusal, headers={}, request=None, url="", text="")
        refusal = HfHubHTTPError("it broke\nat length", response=answer)
    hub.refuses = refusal
    with pytest.raises(UsageError, match=f"nothing was pushed to org/name: .*{message}") as caught:
        vitcompact.push(folded, "org/name")
    assert "\n" not in str(caught.value)


def test_offline_it_says_so(folded: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_push.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set; a dry run needs no connection"):
        vitcompact.push(folded, "org/name")
    assert hub.calls == []
