"""Models on the hub: which files of a repository are fetched for each layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitcompact.checkpoint import hub
from vitcompact.errors import UsageError


@pytest.mark.parametrize(
    ("files", "config", "fetched"),
    [
        (("config.json", "model.safetensors"), '{"architecture": "test_vit"}', ["config.json", "model.safetensors"]),
        (
            ("config.json", "pytorch_model.bin", "preprocessor_config.json"),
            '{"model_type": "vit"}',
            ["config.json", "pytorch_model.bin", "preprocessor_config.json"],
        ),
        (("config.json", "model.safetensors"), '{"model_type": "vit"}', ["config.json", "model.safetensors"]),
        (
            ("open_clip_config.json", "open_clip_model.safetensors"),
            "{}",
            ["open_clip_config.json", "open_clip_model.safetensors"],
        ),
        (
            ("open_clip_config.json", "open_clip_pytorch_model.bin"),
            "{}",
            ["open_clip_config.json", "open_clip_pytorch_model.bin"],
        ),
    ],
)
def test_what_is_fetched(
    files: tuple[str, ...], config: str, fetched: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in files:
        (tmp_path / name).write_text(config)
    got: list[str] = []

    def cached(repo_id: str, filename: str, cache_dir: object = None, revision: str | None = None) -> str | None:
        if filename not in files:
            return None
        got.append(filename)
        return str(tmp_path / filename)

    monkeypatch.setattr(hub, "try_to_load_from_cache", cached)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    assert hub.fetch_directory("org/name") == tmp_path
    assert got == fetched


def test_nothing_of_a_repository_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="cannot download hf-hub:org/name"):
        hub.fetch_directory("org/name")
