"""The command line's entry: parsing, and the one place where errors become a message and an exit code."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from importlib import import_module
from types import FrameType, ModuleType
from typing import Any

import typer

from vitcompact.cli.command import Invocation, Options, Verb, command, join_numbers
from vitcompact.cli.console import Console
from vitcompact.cli.options import VERBS
from vitcompact.cli.spoken import spoken
from vitcompact.cli.together import run_together
from vitcompact.errors import VitCompactError, is_out_of_memory
from vitcompact.utils import early_exit
from vitcompact.utils.launch import place_of
from vitcompact.version import __version__

PROGRAM = early_exit.PROGRAM
AUTO = "auto"
EXIT_BUG, EXIT_USAGE, EXIT_BROKEN_PIPE = 1, 2, 141

# Newer releases of typer carry their own copy of click: its usage error is found through what typer exports.
_ClickUsageError = typer.BadParameter.__bases__[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: the words after the program's name; None takes them from the process.
    """
    early_exit.loaded()
    words = list(sys.argv[1:] if argv is None else argv)
    console = Console(verbose="--verbose" in words or "-v" in words)
    if not words:
        return main(["--help"]) or EXIT_USAGE
    previous, place = _listen(), None
    try:
        place = place_of(os.environ)
        if place is not None:
            return run_together(
                place,
                lambda: _parsed(words),
                lambda parsed, processes: _carry_out(parsed, _console_of(parsed, processes)),
                lambda error: _report(error, console),
            )
        parsed = _parsed(words)
        if isinstance(parsed, int):
            return parsed
        console = _console_of(parsed)
        _carry_out(parsed, console)
        return 0
    except BaseException as error:
        return _report(error, console)
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is not signal.SIG_IGN:  # of several processes that have failed
                signal.signal(number, handler)
        early_exit.ending()


def _parsed(words: list[str]) -> Invocation | int:
    """What was typed, or the exit code of words that were answered at once, such as --help."""
    parsed = typer.main.get_command(application()).main(
        join_numbers(words, VERBS), prog_name=PROGRAM, standalone_mode=False
    )
    return parsed if isinstance(parsed, (Invocation, int)) else 0


def _console_of(parsed: Invocation, processes: Any = None) -> Console:
    given = parsed.options
    return Console(as_json=given.json, quiet=given.quiet, verbose=given.verbose, processes=processes)


def _carry_out(parsed: Invocation, console: Console) -> None:
    with console.capture_messages():
        module = _load(parsed.verb, console)
        console.watch(parsed.verb.name)
        module.run(_on_device(parsed.options, console), parsed.given, console)


def _load(verb: Verb, console: Console) -> ModuleType:
    """The module of a verb, whose `run` does the work; torch and timm are loaded with it, and not before."""
    early_exit.watch_loading()
    try:
        with console.waiting("loading torch and timm"):
            return import_module(f"vitcompact.cli.verbs.{verb.name}")
    finally:
        early_exit.loaded()


def _on_device(options: Options, console: Console) -> Options:
    """`--device auto` as the device that it stands for; of several processes, each has a GPU of its own."""
    asked = device = getattr(options, "device", None)
    if asked == AUTO:
        device = import_module("vitcompact.utils.device").best_device()
        console.note(f"--device {AUTO}: {device}")
    if device == "cuda" and console.processes is not None:
        device = f"cuda:{import_module('torch').cuda.current_device()}"
    return options if device == asked else dataclasses.replace(options, device=device)


def _listen() -> dict[signal.Signals, Any]:
    """Make a polite kill and a closed terminal what Ctrl-C is, so that nothing half-done stays; the handlers before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    polite = [signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if name in signal.Signals.__members__]
    return {
        number: signal.signal(number, _terminated) for number in polite if signal.getsignal(number) == signal.SIG_DFL
    }


def _terminated(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(f"ended by {signal.Signals(number).name}")


def application() -> typer.Typer:
    """The typer application with all verbs."""
    app = typer.Typer(
        help="Make a pretrained timm Vision Transformer smaller and faster, without training it from scratch.",
        epilog="All in one: vitcompact compact MODEL --data-dir IMAGES. Step by step: vitcompact analyze MODEL "
        "--data-dir IMAGES, then convert, finetune, fold. "
        "Each takes what it needs from the one before. Exit codes: 0 done, 2 wrong usage or input, 3 nothing to "
        "compact, 4 bad checkpoint, 5 verification failed, 6 threshold missed, 130 interrupted.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for verb in VERBS:
        app.command(verb.name)(command(verb))
    return app


def _root(
    version: bool = typer.Option(
        False,
        "--version",
        is_eager=True,
        callback=lambda wanted: _version(wanted),
        metavar="",
        help="Show the versions and exit.",
    ),
) -> None:
    pass


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as release

        parts = []
        for name in ("torch", "timm"):
            try:
                parts.append(f"{name} {release(name)}")
            except PackageNotFoundError:
                parts.append(f"{name} is not installed")
        python = ".".join(map(str, sys.version_info[:3]))
        sys.stdout.write(f"{PROGRAM} {__version__} ({', '.join(parts)}, Python {python})\n")
        raise typer.Exit


def _report(error: BaseException, console: Console) -> int:
    """One message for whatever ended the command, and its exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else EXIT_BUG
    if isinstance(error, BrokenPipeError):
        # Whoever read stdout has gone: nothing more can be said there, not even at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        console.error("interrupted" if not error.args else str(error.args[0]))
        return early_exit.EXIT_INTERRUPTED
    if isinstance(error, _ClickUsageError):
        context = getattr(error, "ctx", None)
        name = context.command_path if context is not None else PROGRAM
        message = error.format_message()  # type: ignore[attr-defined]
        console.error(f"{message.replace('Value error, ', '').rstrip('.')} (see {name} --help)")
        return EXIT_USAGE
    if console.verbose:
        console.plain("".join(traceback.format_exception(error)))
    if isinstance(error, VitCompactError):
        console.error(spoken(str(error)))
        return error.exit_code
    if is_out_of_memory(error):
        console.error(f"not enough memory: {_first_line(error)}; try a smaller --batch-size or --num-samples")
        return EXIT_USAGE
    again = "" if console.verbose else "; run it again with --verbose for the traceback"
    console.error(f"{type(error).__name__}: {_first_line(error)}. This is a bug in vitcompact{again}.")
    return EXIT_BUG


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else "no message"
