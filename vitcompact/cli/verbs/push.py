"""`vitcompact push`."""

from __future__ import annotations

import dataclasses

from rich.console import RenderableType

from vitcompact.checkpoint.hub_push import Pushed, push
from vitcompact.checkpoint.provenance import DIR_PREFIX
from vitcompact.cli import inputs
from vitcompact.cli.command import Options
from vitcompact.cli.console import Console
from vitcompact.cli.render.common import size, table, titled
from vitcompact.cli.workspace import Workspace
from vitcompact.errors import UsageError
from vitcompact.utils.reading import user_path


def run(options: Options, given: frozenset[str], console: Console) -> None:
    """Upload MODEL to REPO, or list what would go up."""
    if options.repo is None:
        raise UsageError("no repository was named: give ORG/NAME, as in 'vitcompact push ORG/NAME'")
    if options.source is None:
        space = Workspace(options.workdir)
        found = space.folded()
        console.note(f"from the workspace {space.path}: MODEL {found}")
        options = dataclasses.replace(options, source=str(found))
    directory = user_path(options.source.removeprefix(DIR_PREFIX))
    if not directory.is_dir():
        raise UsageError(f"{options.source} is no directory: give one that fold or compact wrote")
    console.progress.start("check and upload", None)
    done = push(directory, options.repo, private=options.private, revision=options.revision, dry_run=options.dry_run)
    console.progress.finish()
    console.result({**done.to_json(), "dry_run": options.dry_run, "options": inputs.effective(options)}, _table(done))
    if done.url is None:
        console.note("nothing was sent; the same without --dry-run uploads these files")
    else:
        console.note(f"pushed to {done.url}; after 'import vitcompact', timm loads hf-hub:{done.repo}")


def _table(done: Pushed) -> RenderableType:
    found = table("file", "size", right=("size",))
    for name, count in done.files.items():
        found.add_row(name, size(count))
    found.add_row("all", size(sum(done.files.values())))
    what = "Would go up" if done.url is None else "Pushed"
    return titled(f"{what} to {done.repo}{'' if done.revision is None else f' ({done.revision})'}", found)
