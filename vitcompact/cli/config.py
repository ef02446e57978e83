"""`--config FILE`: option values from YAML, below the command line and above the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer

from vitcompact.errors import UsageError
from vitcompact.options.recipes import NAMES, recipe_text
from vitcompact.utils.places import PLACES, found
from vitcompact.utils.plain_yaml import parse_yaml
from vitcompact.utils.reading import parse_json, read_text, user_path

_NOT_CONFIGURABLE = ("config", "help", "help-all")


def use_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """The callback of `--config`: click looks values up in `default_map` before it takes a default."""
    if path is not None and not ctx.resilient_parsing:
        ctx.default_map = _by_parameter(ctx, read_config(path), path)
    return path


def read_config(path: Path) -> Mapping[str, Any]:
    """The options in a YAML file or a shipped recipe, or those recorded in a JSON document of ours (`options`).

    Raises:
        UsageError: not readable, or no mapping of option names to values.
    """
    shipped = str(path) in NAMES and not path.exists()
    try:
        document = _parsed(recipe_text(str(path)) if shipped else read_text(user_path(path)))
    except OSError as error:
        raise UsageError(f"cannot read --config {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--config {path} is not YAML or cannot be used: {error}") from error
    if isinstance(document, dict) and isinstance(document.get("options"), Mapping):
        document = found(document, document.get(PLACES), user_path(path).parent)
        # How the original is read: kept for the other verbs, and no option of this one.
        options = {key: value for key, value in document["options"].items() if key != "original"}
        if "plan" in options and isinstance(document.get("plan"), Mapping):
            options["plan"] = str(path)  # the document has the plan that was followed; the file may be another by now
        document = options
    if document is None:
        return {}
    if not isinstance(document, Mapping):
        raise UsageError(f"--config {path}: expected option names with values, such as 'ratio: 0.5'")
    return document


def _parsed(text: str) -> Any:
    """A document of ours, which may be long, or YAML."""
    if text.lstrip().startswith("{"):
        try:
            return parse_json(text)
        except ValueError:
            pass  # YAML has such mappings too
    return parse_yaml(text)


def _by_parameter(ctx: typer.Context, document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Values by the name of click's parameter, in the form that click expects."""
    known = {name: param for param in ctx.command.params for name in _names(param)}
    values: dict[str, Any] = {}
    for key, value in document.items():
        param = known.get(str(key).replace("_", "-"))
        if param is None:
            raise UsageError(f"--config {path}: unknown option {key!r} of {ctx.info_name}{_hint(str(key), known)}")
        if value is not None:
            values[str(param.name)] = _as_given(value, param, f"--config {path}: {key}")
    return values


def _names(param: Any) -> set[str]:
    spellings = {opt.lstrip("-") for opt in param.opts if opt.startswith("--")} or {str(param.name)}
    return {name.replace("_", "-") for name in spellings} - set(_NOT_CONFIGURABLE)


def _as_given(value: Any, param: Any, what: str) -> Any:
    if isinstance(value, Mapping) and param.metavar == "KEY=VALUE":
        return " ".join(f"{key}={tuple(item) if isinstance(item, list) else item}" for key, item in value.items())
    if isinstance(value, Mapping):
        raise UsageError(f"{what} must be a value, got {dict(value)}")
    if param.multiple:
        return [str(item) for item in value] if isinstance(value, (list, tuple)) else [str(value)]
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return value if isinstance(value, bool) else str(value)


def _hint(key: str, known: Mapping[str, Any]) -> str:
    close = get_close_matches(key.replace("_", "-"), known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(sorted(known))}"
