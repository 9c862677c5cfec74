"""The classes of the commands: help with plain placeholders, and one line about a value that an option cannot take."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from ...errors import UsageError
from ..model.files import refuse_overwriting
from ..report.terminal import say

ParameterT = TypeVar("ParameterT", bound=Any)

OUTPUTS = ("output", "log")
"""Parameters that name a command's output files and folders."""
LOCATIONS = "SOURCE|LABELS|IMAGE|STORE|FILE|DIR"
"""Placeholders of texts that are files or folders."""
NUMBERS = {"int": "a whole number", "float": "a number"}
"""Kinds of numbers by the first word of pydantic's error types."""
LIMITS = {"greater_than_equal": ("ge", "at least"), "less_than_equal": ("le", "at most")}
"""Limits by pydantic's error types: the key of the number, and the words before it."""


def needs(**options: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declare options of a command that apply only beside others, so that they are refused alone, never dropped.

    Each name is a parameter of the command, and its value the parameters of which one must be given, separated by
    spaces: ``@needs(overlap="tile", labels_format="labeled validation")``.
    """

    def mark(command: Callable[..., None]) -> Callable[..., None]:
        command.needs = options  # type: ignore[attr-defined]
        return command

    return mark


def without_types(parameters: list[ParameterT]) -> list[ParameterT]:
    """Remove the Python types that the help shows beside flags and arguments."""
    for parameter in parameters:
        if isinstance(parameter, TyperArgument):
            parameter.display_type_rich = lambda ctx: ""
        elif parameter.is_flag and parameter.metavar is None:
            parameter.metavar = ""
    return parameters


class PlainGroup(TyperGroup):
    """The command line, whose help names no Python types."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, with no placeholder for flags."""
        return without_types(super().get_params(ctx))


class PlainCommand(TyperCommand):
    """Command whose help names no Python types, and whose errors do not speak of validation."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, with no placeholder for flags, and none beside the name of an argument."""
        return without_types(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line: NAME for a required argument, [NAME] for another, NAME... for several."""
        pieces = [re.sub(r"^\{(.*)\}", r"\1", piece) for piece in super().collect_usage_pieces(ctx)]
        pieces = [re.sub(r"^\[(\[.*\](\.\.\.)?)\](\.\.\.)?$", r"\1", piece) for piece in pieces]
        return [re.sub(r"(\.\.\..+)\.\.\.$", r"\1", piece) for piece in pieces]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments; raises :class:`UsageError` for a value that an option cannot take."""
        arguments = list(args)
        try:
            remainder = super().parse_args(ctx, args)
            for parameter in self.params:
                refuse_url(parameter, ctx.params.get(parameter.name or ""))
            refuse_repeated(self.make_parser(ctx).parse_args(args=arguments)[2])
            refuse_inputs_as_outputs(self.params, ctx.params)
            self._refuse_without_need(ctx)
            return remainder
        except typer.BadParameter as error:
            ctx.close()
            if error.param is None or not error.message:  # a missing argument
                raise
            refuse_value(error)
        except BaseException:
            ctx.close()  # ends the storage options
            raise

    def _refuse_without_need(self, ctx: Any) -> None:
        """Raise :class:`UsageError` for an option that :func:`needs` another one."""
        names = {parameter.name: name_of(parameter) for parameter in self.params if is_given(ctx, parameter)}
        options: Mapping[str, str] = getattr(self.callback, "needs", {})
        for option, required in options.items():
            if option in names and names.keys().isdisjoint(required.split()):
                needed_options = " or ".join(name_of(entry) for entry in self.params if entry.name in required.split())
                raise UsageError(
                    f"{names[option]} applies to {needed_options} only; add it, or leave {names[option]} out"
                )

    def invoke(self, ctx: Any) -> object:
        """Run the command; an interrupt prints one line, unlike Typer, which exits silently."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("maskmill: interrupted", stderr=True)
            raise typer.Exit(130) from None


def name_of(parameter: Any) -> str:
    """Return the name of an option or argument for messages."""
    return next((text for text in parameter.opts if text.startswith("--")), parameter.metavar or parameter.name)


def is_given(ctx: Any, parameter: Any) -> bool:
    """Return True if an option or argument is on the command line, False for a default."""
    source = ctx.get_parameter_source(parameter.name or "")
    return source is not None and source.name == "COMMANDLINE"


def refuse_url(parameter: Any, value: Any) -> None:
    """Raise :class:`UsageError` for a URL in place of a local path; Python would treat it as a folder."""
    for path in value if isinstance(value, list | tuple) else [value]:
        if isinstance(path, Path) and (match := re.match("([a-z][a-z0-9+.-]+):/(?=.)", str(path))):
            url = f"{match[1]}://{str(path)[match.end() :]}"
            raise UsageError(f"{name_of(parameter)} must be a local file or folder, got {url}; use a local path")


def refuse_repeated(parameters: Sequence[Any]) -> None:
    """Raise :class:`UsageError` for a single-value option that occurs twice on the command line."""
    for parameter, count in Counter(parameters).items():
        if count > 1 and not (parameter.multiple or parameter.is_eager or getattr(parameter, "is_flag", True)):
            raise UsageError(f"{name_of(parameter)} is given {count} times, and takes one value; give it once")


def refuse_inputs_as_outputs(parameters: Sequence[Any], values: Mapping[str, Any]) -> None:
    """Raise :class:`UsageError` if a command would write to a file or folder that it also reads."""
    inputs: list[str | Path] = []
    for parameter in parameters:
        value: Any = None if parameter.name in OUTPUTS else values.get(parameter.name)
        names_location = re.search(LOCATIONS, parameter.metavar or "") is not None
        for entry in value if isinstance(value, list | tuple) else [value]:
            if isinstance(entry, Path) or (isinstance(entry, str) and names_location):
                inputs.append(entry)
    for output in (values.get(name) for name in OUTPUTS):
        if output is not None:
            refuse_overwriting(output, inputs)


def refuse_value(error: Any) -> NoReturn:
    """Raise :class:`UsageError` for a value that Typer rejects."""
    parameter = error.param
    name = name_of(parameter)
    cause = error.__cause__
    detail: Any = cause.errors()[0] if hasattr(cause, "errors") else {}
    got, kind = f"got {str(detail.get('input', '')):.80}", str(detail.get("type", ""))
    if (number := NUMBERS.get(kind.partition("_")[0])) is not None:
        expected = f"must be {number}, {got}"
    elif kind in LIMITS:
        key, words = LIMITS[kind]
        expected = f"must be {words} {detail['ctx'][key]:g}, {got}"
    elif choices := re.search(r"is not one of (.*?)\.?$", error.message):
        expected = f"must be one of {choices[1].replace(chr(39), '')}, {got}"
    else:
        expected = f"cannot be used: {error.message.removeprefix('Value error, ')}"
    raise UsageError(f"{name} {expected}") from error
