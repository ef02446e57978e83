"""From an options dataclass to a typer command that parses it and nothing more."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from vitcompact.cli.fields import PANELS, flags_of, parse_numbers
from vitcompact.cli.options import Common

if TYPE_CHECKING:
    from vitcompact.cli.console import Console


@dataclass(frozen=True)
class Verb:
    """One verb: its options, and the module (imported only when it runs) whose `run` does the work."""

    name: str
    options: type[Common]
    module: str


@dataclass(frozen=True)
class Invocation:
    """A parsed command line: the verb, its options, and the names of those that were given."""

    verb: Verb
    options: Any
    given: frozenset[str]

    def run(self, console: Console) -> None:
        """Import the verb and run it."""
        module = importlib.import_module(self.verb.module)
        module.run(self.options, self.given, console)


def command(verb: Verb) -> Callable[..., Invocation]:
    """A function with the signature that typer reads; called with the values, it returns an Invocation."""
    hints = get_type_hints(verb.options)
    parameters = [inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    for field in sorted(dataclasses.fields(verb.options), key=_panel):
        annotation = (str | None) if field.metadata["numbers"] else hints[field.name]
        parameters.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None if field.metadata["numbers"] else _default(field),
                annotation=Annotated[annotation, field.metadata["parameter"]],
            )
        )

    def parse(ctx: typer.Context, **values: Any) -> Invocation:
        names = [field.name for field in dataclasses.fields(verb.options)]
        given = frozenset(name for name in names if _was_given(ctx, name))
        return Invocation(verb, _build(verb.options, values), given)

    parse.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    parse.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    parse.__doc__ = _one_line_a_paragraph(verb.options.__doc__ or "")
    return parse


def _one_line_a_paragraph(text: str) -> str:
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def join_numbers(argv: Sequence[str], verbs: Sequence[Verb]) -> list[str]:
    """`--mean 0.5 0.5 0.5`, as timm's scripts take it, becomes `--mean 0.5,0.5,0.5`."""
    by_name = {verb.name: verb for verb in verbs}
    verb = next((by_name[word] for word in argv if word in by_name), None)
    fields = dataclasses.fields(verb.options) if verb else ()
    flags = {flag for field in fields if field.metadata["numbers"] for flag in flags_of(field)}
    joined: list[str] = []
    in_list = False
    for word in argv:
        if in_list and _is_number(word) and joined[-1] not in flags:
            joined[-1] += f",{word}"
            continue
        in_list = word in flags or (in_list and bool(joined) and joined[-1] in flags)
        joined.append(word)
    return joined


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _panel(field: dataclasses.Field[Any]) -> int:
    """Position of a field's heading in `--help`; arguments come first."""
    name = getattr(field.metadata["parameter"], "rich_help_panel", None)
    return 1 + PANELS.index(name) if name in PANELS else 0


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if callable(field.default_factory) else field.default


def _was_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "DEFAULT_MAP", "ENVIRONMENT")


def _build(options: type[Common], values: dict[str, Any]) -> Common:
    for field in dataclasses.fields(options):
        numbers = field.metadata["numbers"]
        if numbers:
            text = values[field.name]
            values[field.name] = _default(field) if text is None else parse_numbers(text, numbers, flags_of(field)[0])
    return options(**values)
