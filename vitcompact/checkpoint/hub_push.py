"""Uploads a finished directory to the Hugging Face hub, and nothing that does not belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from vitcompact.checkpoint.directory import load
from vitcompact.checkpoint.disk import foreign_entries
from vitcompact.checkpoint.quiet import first_line
from vitcompact.checkpoint.record import read_record
from vitcompact.errors import CheckpointError, UsageError
from vitcompact.utils.files import restored
from vitcompact.utils.reading import user_path

LOG_IN = "log in with 'hf auth login', or set HF_TOKEN, for an account that may write there"


@dataclass(frozen=True)
class Pushed:
    """What went up, or would go up.

    Attributes:
        repo: `ORG/NAME`.
        files: size in bytes of each file, by name.
        revision: branch; None is the repository's main one.
        url: of the commit; None where nothing was uploaded.
    """

    repo: str
    files: Mapping[str, int]
    revision: str | None = None
    url: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The keys of `push --json`: repo, files (each with name and bytes), revision, url."""
        files = [{"name": name, "bytes": size} for name, size in self.files.items()]
        return {"repo": self.repo, "files": files, "revision": self.revision, "url": self.url}


def push(
    directory: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Upload a folded model that `save` wrote; timm then loads it as `hf-hub:ORG/NAME` after `import vitcompact`.

    The hub client finds the account's token by itself; it is neither taken, shown nor kept here.

    Args:
        directory: what `save` wrote: a folded model, complete, and with nothing else in it.
        repo: `ORG/NAME`, made where there is none.
        private: make a new repository private; one that exists stays as it is.
        revision: branch, made where there is none; None is the main one.
        dry_run: only list the files; nothing is sent, and nothing asked for.

    Raises:
        UsageError: a directory of others, one that is not finished, a name that the hub does not take, no connection,
            or no account that may write there.
        CheckpointError: the directory is damaged.
    """
    path = restored(user_path(directory))
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        reason = first_line(error).removesuffix(" Use `repo_type` argument if needed.")  # which we do not have
        raise UsageError(f"{repo!r} is no name of a repository, which is ORG/NAME: {reason}") from error
    found = Pushed(repo, _finished(path), revision)
    if dry_run:
        return found
    try:
        return Pushed(repo, found.files, revision, _upload(path, found, private))
    except (LocalTokenNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise UsageError(f"nothing was pushed to {repo}: {_reason(error)}") from error


def _upload(path: Path, wanted: Pushed, private: bool) -> str:
    """The address of the commit."""
    if constants.HF_HUB_OFFLINE:
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
    api = HfApi()
    api.create_repo(wanted.repo, private=private or None, exist_ok=True)
    if wanted.revision is not None:
        api.create_branch(wanted.repo, branch=wanted.revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=wanted.repo,
        folder_path=path,
        allow_patterns=list(wanted.files),
        revision=wanted.revision,
        commit_message="Upload a model made smaller by vitcompact",
    )
    return str(commit.commit_url)


def _finished(path: Path) -> dict[str, int]:
    """The files of a directory that is ours, whole and folded, with their sizes.

    Raises:
        UsageError, CheckpointError: see `push`.
    """
    record = read_record(path)
    if foreign := foreign_entries(path):
        raise UsageError(f"{path} is not pushed: {foreign}; move that away first")
    if missing := [name for name in record.files if not (path / name).is_file()]:
        raise CheckpointError(f"{path} is not complete: {', '.join(missing)} missing")
    if record.plan.form != "folded":
        raise UsageError(f"{path} is not finished: it is in training form; fold it first, and push what comes out")
    load(path)  # strictly: what goes up can be loaded
    return {name: (path / name).stat().st_size for name in sorted(record.files)}


def _reason(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError) or status in (401, 403):
        return LOG_IN
    if isinstance(error, OfflineModeIsEnabled):
        return f"{first_line(error)}; a dry run needs no connection"
    return first_line(error)
