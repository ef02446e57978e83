"""From declarations (`vitcompact.options`) to a typer command that parses them and nothing more."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

import typer

from vitcompact.cli.config import use_config
from vitcompact.cli.spoken import flags_of, spoken
from vitcompact.options.declare import PANELS, Option, check_limits, declared

Options: TypeAlias = Any
"""The values of one verb: a frozen dataclass with a field for each of its options and arguments."""

T = TypeVar("T")
HELP_ALL = "help_all"
_PAIR = re.compile(r"[A-Za-z_]\w*=")
_NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Verb:
    """One verb.

    Attributes:
        text: what `--help` says.
        takes: dataclasses whose declared fields are its options; of several fields of one name the first counts.
        arguments: by name, what is given by position: how it is called in `--help`, and what it is.
        defaults: where they differ from the declared ones.
        several: the argument that takes any number of values.
    """

    name: str
    text: str
    takes: tuple[type, ...]
    arguments: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    several: str = ""

    @cached_property
    def values(self) -> type:
        """A dataclass of its arguments and options."""
        found: dict[str, tuple[str, Any, Any]] = {n: (n, str | None, field(default=None)) for n in self.arguments}
        for kind in self.takes:
            hints, known = get_type_hints(kind), declared(kind)
            for old in dataclasses.fields(kind):
                if old.name in known and known[old.name].panel and old.name not in found:
                    new = field(default=self.defaults.get(old.name, old.default), metadata=old.metadata)
                    found[old.name] = (old.name, hints[old.name], new)
        return dataclasses.make_dataclass(f"{self.name.title()}Values", found.values(), frozen=True, kw_only=True)

    @property
    def options(self) -> dict[str, Option]:
        """The declarations of its options, by name."""
        return declared(self.values)


def pick(kind: type, *names: str) -> type:
    """A dataclass with some fields of another."""
    hints, old = get_type_hints(kind), {one.name: one for one in dataclasses.fields(kind)}
    fields = [(n, hints[n], field(default=old[n].default, metadata=old[n].metadata)) for n in names]
    return dataclasses.make_dataclass(kind.__name__, fields, kw_only=True)


@dataclass(frozen=True)
class Invocation:
    """A parsed command line: the verb, its options, and the names of those that were given."""

    verb: Verb
    options: Options
    given: frozenset[str]


def of_kind(kind: type[T], options: Options, **changes: Any) -> T:
    """A dataclass of the library, with the options of the same names."""
    values = {name: getattr(options, name) for name in declared(kind) if hasattr(options, name)}
    return kind(**{**values, **changes})


def command(verb: Verb) -> Callable[..., Invocation]:
    """A function with the signature that typer reads; called with the values, it returns an Invocation."""
    parameters = [_parameter("ctx", inspect.Parameter.empty, typer.Context)]
    for name, (metavar, text) in verb.arguments.items():
        argument = typer.Argument(metavar=metavar, help=text, show_default=False)
        kind: Any = list[str] | None if name == verb.several else str | None
        parameters.append(_parameter(name, None, Annotated[kind, argument]))
    options = verb.options
    fields = [one for one in dataclasses.fields(verb.values) if one.name in options]
    for one in sorted(fields, key=lambda one: PANELS.index(options[one.name].panel)):
        parameters.append(_as_parameter(one, options[one.name]))

    parameters.append(help_all(sum(option.rare for option in options.values())))

    def parse(ctx: typer.Context, **values: Any) -> Invocation:
        del values[HELP_ALL]
        for one in fields:
            text = values[one.name]
            values[one.name] = one.default if text is None else options[one.name].read(one.name, text)
        parsed = verb.values(**values)
        check_limits(parsed)
        return Invocation(verb, parsed, frozenset(name for name in values if _was_given(ctx, name)))

    parse.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    parse.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    parse.__doc__ = "\n\n".join(" ".join(paragraph.split()) for paragraph in verb.text.split("\n\n"))
    return parse


def join_numbers(argv: Sequence[str], verbs: Sequence[Verb]) -> list[str]:
    """`--mean 0.5 0.5 0.5`, as timm's scripts take it, becomes `--mean 0.5,0.5,0.5`; so do pairs of key and value."""
    options = next((verb.options for word in argv for verb in verbs if verb.name == word), {})
    flags = {
        flag for name, option in options.items() if option.items in (int, float) for flag in flags_of(name, option)
    }
    mappings = {flag for name, option in options.items() if option.pairs for flag in flags_of(name, option)}
    joined: list[str] = []
    for word in argv:
        before = joined[-2] if joined[-2:-1] else ""
        if (before in flags and _NUMBER.fullmatch(word)) or (before in mappings and _PAIR.match(word)):
            joined[-1] += f",{word}"
        else:
            joined.append(word)
    return joined


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _as_parameter(one: dataclasses.Field[Any], option: Option) -> inspect.Parameter:
    """An option in typer's terms; a list is a text there, and None where it is not given."""
    kind, flags, default = _kind(one.type, option), flags_of(one.name, option), one.default
    shown: str | bool = spoken(option.unset) or False
    if default not in (None, "", ()):
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else True
    parameter = typer.Option(
        *([f"{flags[0]}/--no-{flags[0][2:]}"] if kind is bool and default is not False else flags),
        help=spoken(option.help),
        rich_help_panel=option.panel,
        metavar="" if kind is bool else option.unit,
        show_default=shown,
        hidden=option.rare,
        is_eager=one.name == "config",
        callback=use_config if one.name == "config" else None,
    )
    given = None if option.items else list(default) if isinstance(default, tuple) else default
    return _parameter(one.name, given, Annotated[kind if given is not None else kind | None, parameter])


def help_all(hidden: int) -> inspect.Parameter:
    """The option that shows every option, of which `hidden` are else left out."""
    parameter = typer.Option(
        f"--{HELP_ALL.replace('_', '-')}",
        is_eager=True,
        callback=_show_all,
        rich_help_panel=PANELS[-1],
        metavar="",
        help=f"Show all options, {hidden} more, and exit." if hidden else "Show all options and exit.",
    )
    return _parameter(HELP_ALL, False, Annotated[bool, parameter])


def _show_all(ctx: typer.Context, wanted: bool) -> bool:
    if wanted and not ctx.resilient_parsing:
        for parameter in ctx.command.params:
            parameter.hidden = False  # type: ignore[attr-defined]
        typer.echo(ctx.get_help())
        raise typer.Exit
    return wanted


def _kind(hint: Any, option: Option) -> Any:
    """What typer parses: the first plain type of a union, a text for a list."""
    if option.items or option.repeated or option.pairs:
        return list[str] if option.repeated else str
    kinds = (hint, *get_args(hint))
    return next(kind for kind in kinds if kind in (bool, int, float, str, Path) or get_origin(kind) is Literal)


def _was_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "DEFAULT_MAP", "ENVIRONMENT")
