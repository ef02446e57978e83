"""`vitcompact demo`."""

from __future__ import annotations

from vitcompact.cli import inputs
from vitcompact.cli.command import Options
from vitcompact.cli.console import Console
from vitcompact.cli.render.results import demo_tables
from vitcompact.demo import run as run_demo


def run(options: Options, given: frozenset[str], console: Console) -> None:
    """Do the whole job on the bundled model."""
    result = run_demo(options.workdir, console.progress, overwrite=options.overwrite)
    document = {**result.to_json(), "options": inputs.effective(options)}
    console.result(document, *demo_tables(document))
    console.note(f"written to {result.out}; timm loads it after 'import vitcompact'")
