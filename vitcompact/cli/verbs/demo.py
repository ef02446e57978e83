"""`vitcompact demo`."""

from __future__ import annotations

from vitcompact.checkpoint.record import to_plain
from vitcompact.cli.console import Console
from vitcompact.cli.render.results import demo_tables
from vitcompact.cli.verb_options import DemoOptions
from vitcompact.demo import run as run_demo


def run(options: DemoOptions, given: frozenset[str], console: Console) -> None:
    """Do the whole job on the bundled model."""
    result = run_demo(options.workdir, console.progress)
    document = result.to_json() if hasattr(result, "to_json") else to_plain(result)
    console.result(document, *demo_tables(document))
