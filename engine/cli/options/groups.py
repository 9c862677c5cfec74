"""Groups of options: one parameter of a command that is several options on the command line.

Usage::

    @dataclass(frozen=True, kw_only=True)
    class WindowGroup(OptionGroup):
        panel: ClassVar[str] = "Images"
        windows: WindowsOption = None
        window_overlap: WindowOverlapOption = 0

    @reads_urls
    def label(source: SourceArgument, cut: WindowGroup) -> None: ...

``label --help`` lists ``--windows`` and ``--window-overlap`` in the panel ``Images``; the function receives the group.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import MISSING, fields
from functools import wraps
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_type_hints

from typer.models import OptionInfo


class OptionGroup:
    """Options of one panel of the help: a frozen dataclass whose fields are annotated as options."""

    panel: ClassVar[str]


GroupT = TypeVar("GroupT", bound=OptionGroup)


def with_options(
    command: Callable[..., None],
    group: type[OptionGroup],
    entering: Callable[[Any], AbstractContextManager[Any]],
) -> Callable[..., None]:
    """Replace the groups among a command's parameters by their options, and add the options of one more group.

    The command runs within what ``entering`` makes of that group.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and issubclass(hint, OptionGroup)}

    @wraps(command)  # with its attributes, such as the needs of its options
    def extended(**values: Any) -> None:
        with entering(_make(group, values)):
            command(**{name: _make(kind, values) for name, kind in groups.items()}, **values)

    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _parameters(groups[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))
    parameters += _parameters(group)
    # Typer reads the parameters of a command from these
    extended.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    extended.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return extended


def _make(group: type[GroupT], values: dict[str, Any]) -> GroupT:
    """Make a group from its options among the values of a command line, and remove them there."""
    return group(**{field.name: values.pop(field.name) for field in fields(group)})  # type: ignore[arg-type]


def _parameters(group: type[OptionGroup]) -> list[inspect.Parameter]:
    hints: Mapping[str, Any] = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=_in_panel(hints[field.name], group.panel),
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
        )
        for field in fields(group)  # type: ignore[arg-type]
    ]


def _in_panel(annotation: Any, panel: str) -> object:
    kind, option = get_args(annotation)
    assert isinstance(option, OptionInfo), "a group holds options only"
    option = copy.copy(option)
    option.rich_help_panel = panel
    return Annotated[kind, option]
